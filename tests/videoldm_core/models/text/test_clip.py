"""The text encoder of a Stable Diffusion folder: the same hidden states as CLIP's own formula."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, softmax

from videoldm_core.errors import UserError
from videoldm_core.models.pretrained.stable_diffusion import load_text_tower
from videoldm_core.models.text.clip import load_clip_text
from videoldm_core.models.text.encoder import CLIP_VOCABULARY

WIDTH, HEADS, LAYERS, LENGTH = 32, 4, 3, 12
CAPTIONS = ["a red car overtakes at night", "", "rain " * 200]
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.out_proj": (WIDTH, WIDTH),
    "mlp.fc1": (4 * WIDTH, WIDTH),
    "mlp.fc2": (WIDTH, 4 * WIDTH),
    "layer_norm1": (WIDTH,),
    "layer_norm2": (WIDTH,),
}


def clip_weights() -> dict[str, Tensor]:
    """Random weights under the names of transformers' CLIPTextModel."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    weights = {
        "embeddings.token_embedding.weight": draw(CLIP_VOCABULARY, WIDTH),
        "embeddings.position_embedding.weight": draw(LENGTH, WIDTH),
        "final_layer_norm.weight": 1 + draw(WIDTH),
        "final_layer_norm.bias": draw(WIDTH),
    }
    for i in range(LAYERS):
        for name, shape in SHAPES.items():
            weights[f"encoder.layers.{i}.{name}.weight"] = draw(*shape)
            weights[f"encoder.layers.{i}.{name}.bias"] = draw(shape[0])
    return {f"text_model.{name}": tensor for name, tensor in weights.items()}


def write_model(
    folder: Path,
    *,
    activation: str = "quick_gelu",
    pad: str = "<|endoftext|>",
    heads: int = HEADS,
) -> Path:
    """A folder as Stable Diffusion's, its text encoder small."""
    (folder / "text_encoder").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    described = {
        "hidden_act": activation,
        "hidden_size": WIDTH,
        "num_attention_heads": heads,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": LENGTH,
        "vocab_size": CLIP_VOCABULARY,
    }
    (folder / "text_encoder" / "config.json").write_text(json.dumps(described))
    save_file(clip_weights(), folder / "text_encoder" / "model.safetensors")
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
    return folder


def reference(tokens: Tensor, activation: str) -> Tensor:
    """CLIP's text transformer (Radford 2021) written out: pre-norm blocks, causal attention."""
    w = {name.removeprefix("text_model."): tensor for name, tensor in clip_weights().items()}

    def normed(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"])

    def mapped(x: Tensor, name: str) -> Tensor:
        return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = w["embeddings.token_embedding.weight"][tokens] + w["embeddings.position_embedding.weight"]
    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    for i in range(LAYERS):
        at = f"encoder.layers.{i}"
        h = normed(x, f"{at}.layer_norm1")
        q, k, v = (
            mapped(h, f"{at}.self_attn.{p}_proj").unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for p in "qkv"
        )
        scores = (q @ k.transpose(-1, -2) / (WIDTH / HEADS) ** 0.5).masked_fill(later, -torch.inf)
        h = (softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(2)
        x = x + mapped(h, f"{at}.self_attn.out_proj")
        h = mapped(normed(x, f"{at}.layer_norm2"), f"{at}.mlp.fc1")
        h = h * torch.sigmoid(1.702 * h) if activation == "quick_gelu" else gelu(h)
        x = x + mapped(h, f"{at}.mlp.fc2")
    return normed(x, "final_layer_norm")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_hidden_states_are_those_of_the_reference_formula(activation, tmp_path):
    tower = load_clip_text(write_model(tmp_path, activation=activation))
    states = tower.encode(CAPTIONS)
    expected = reference(tower.tokenize(CAPTIONS), activation)
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("pad", "token"), [("!", 0), ("<|endoftext|>", CLIP_VOCABULARY - 1)])
def test_captions_are_padded_as_the_models_own_tokenizer_does(pad, token, tmp_path):
    tokens = load_clip_text(write_model(tmp_path, pad=pad)).tokenize(["a car"])
    assert tokens[0, -1] == token
    assert tokens[0, :4].tolist().count(CLIP_VOCABULARY - 1) == 1, "one end token follows the words"


@pytest.mark.parametrize("token", ["!", {"content": "!", "lstrip": False}])
def test_padding_is_found_where_newer_libraries_write_it(token, tmp_path):
    model = write_model(tmp_path)
    (model / "tokenizer" / "special_tokens_map.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer_config\.json.*what captions are padded with"):
        load_clip_text(model)
    (model / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"pad_token": token}))
    assert load_clip_text(model).config.padding == "zero"


def test_a_saved_tower_gives_the_same_states_as_the_folder_it_came_from(tmp_path):
    tower = load_clip_text(write_model(tmp_path / "model"))
    tower.save(tmp_path / "tower")
    again = type(tower).load(tmp_path / "tower")
    assert torch.equal(tower.encode(CAPTIONS), again.encode(CAPTIONS))


@pytest.mark.parametrize("prefix", ["text_model.", ""])  # "": as some merges name it
def test_a_single_file_holds_the_same_tower_as_the_folder(prefix, tmp_path):
    start = f"cond_stage_model.transformer.{prefix}"
    plain = {name.removeprefix("text_model."): t for name, t in clip_weights().items()}
    named = {f"{start}{name}": tensor for name, tensor in plain.items()}
    named[f"{start}embeddings.position_ids"] = torch.arange(LENGTH)[None]
    named["cond_stage_model.transformer.text_projection.weight"] = torch.zeros(3, WIDTH)
    save_file(named, tmp_path / "model.safetensors")
    # a file does not say how many heads there are: CLIP's are 64 wide
    expected = load_clip_text(write_model(tmp_path / "folder", heads=1))
    loaded = load_text_tower(tmp_path / "model.safetensors")
    assert torch.equal(loaded.encode(CAPTIONS), expected.encode(CAPTIONS))


def test_a_lora_changes_the_layers_it_names(tmp_path):
    model = write_model(tmp_path / "model")
    generator = torch.Generator().manual_seed(3)
    down, up = (
        torch.randn(2, WIDTH, generator=generator),
        torch.randn(WIDTH, 2, generator=generator),
    )
    layer = "encoder_layers_1_self_attn_q_proj"
    lora = {
        f"lora_te_text_model_{layer}.lora_down.weight": down,
        f"lora_te_text_model_{layer}.lora_up.weight": up,
        f"lora_te_text_model_{layer}.alpha": torch.tensor(1.0),
        "lora_unet_mid_block.lora_down.weight": torch.zeros(1, 1),
    }
    save_file(lora, tmp_path / "lora.safetensors")
    changed = load_clip_text(model, loras=[tmp_path / "lora.safetensors"]).transformer
    plain = load_clip_text(model).transformer
    name = "transformer.resblocks.1.attn.in_proj_weight"
    difference = changed.get_parameter(name) - plain.get_parameter(name)
    torch.testing.assert_close(difference[:WIDTH], up @ down / 2)
    assert not difference[WIDTH:].any(), "key and value stay"


def test_a_lora_is_added_in_single_precision_to_a_half_precision_encoder(tmp_path):
    model = write_model(tmp_path / "model")
    half = {name: tensor.half() for name, tensor in clip_weights().items()}
    save_file(half, model / "text_encoder" / "model.safetensors")
    name = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj"
    generator = torch.Generator().manual_seed(3)
    down = torch.randn(2, WIDTH, generator=generator) * 1e-4
    up = torch.randn(WIDTH, 2, generator=generator)
    lora = tmp_path / "lora.safetensors"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, lora)
    changed, plain = (load_clip_text(model, loras=loras).transformer for loras in ([lora], []))
    name = "transformer.resblocks.1.attn.in_proj_weight"
    difference = changed.get_parameter(name) - plain.get_parameter(name)
    torch.testing.assert_close(difference[:WIDTH], up @ down, rtol=1e-3, atol=1e-7)


def test_old_files_with_position_numbers_and_without_prefix_are_read(tmp_path):
    model = write_model(tmp_path)
    expected = load_clip_text(model).encode(CAPTIONS)
    (model / "text_encoder" / "model.safetensors").unlink()
    old = {name.removeprefix("text_model."): tensor for name, tensor in clip_weights().items()}
    old["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    torch.save(old, model / "text_encoder" / "pytorch_model.bin")
    assert torch.equal(load_clip_text(model).encode(CAPTIONS), expected)


def test_a_half_precision_text_encoder_is_read_where_there_is_no_other(tmp_path):
    model = write_model(tmp_path)
    half = {name: tensor.half() for name, tensor in clip_weights().items()}
    (model / "text_encoder" / "model.safetensors").unlink()
    save_file(half, model / "text_encoder" / "model.fp16.safetensors")
    token = load_clip_text(model).transformer.get_parameter("token_embedding.weight")
    assert token.dtype == torch.float32
    assert torch.equal(token, half["text_model.embeddings.token_embedding.weight"].float())


def test_a_quantised_projection_is_refused_by_its_own_key(tmp_path):
    model, weights = write_model(tmp_path), clip_weights()
    key = "text_model.encoder.layers.1.self_attn.k_proj.weight"
    weights[key] = weights[key].to(torch.int8)
    save_file(weights, model / "text_encoder" / "model.safetensors")
    with pytest.raises(UserError, match=f"'{key}' is of type int8, expected floating point"):
        load_clip_text(model)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", None, "gives None as hidden_size, expected a whole number"),
        ("num_attention_heads", 5, "width 32 is not a multiple of heads 5"),
    ],
)
def test_a_config_that_cannot_be_built_is_one_sentence(field, value, message, tmp_path):
    model = write_model(tmp_path)
    path = model / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(UserError, match=message) as refused:
        load_clip_text(model)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("text_model.encoder.layers.1.self_attn.k_proj.weight", "k_proj"),
        ("text_model.encoder.layers.2.mlp.fc1.bias", "mlp.c_fc.bias"),
        ("text_model.final_layer_norm.weight", "ln_final.weight"),
    ],
)
def test_a_missing_key_is_named(key, named, tmp_path):
    model = write_model(tmp_path)
    weights = clip_weights()
    del weights[key]
    save_file(weights, model / "text_encoder" / "model.safetensors")
    with pytest.raises(UserError, match=named):
        load_clip_text(model)


def test_what_is_no_clip_text_encoder_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="text_encoder"):
        load_clip_text(tmp_path)
    model = write_model(tmp_path / "relu", activation="relu")
    with pytest.raises(UserError, match="'relu'"):
        load_clip_text(model)
    model = write_model(tmp_path / "pad", pad="[PAD]")
    with pytest.raises(UserError, match=r"\[PAD\]"):
        load_clip_text(model)
    model = write_model(tmp_path / "cut")
    file = model / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="Cannot read"):
        load_clip_text(model)
