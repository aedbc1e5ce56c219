"""LoRA files are added as their trainers would, under every name they use, or refused by key."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from videoldm_core.errors import UserError
from videoldm_core.models.pretrained.lora import add_lora
from videoldm_core.models.pretrained.lora_file import embeddings_in
from videoldm_core.models.pretrained.stable_diffusion import load_image_model
from videoldm_core.objectives.denoising import ScheduleConfig
from videoldm_core.objectives.pretrained import Brought, BroughtTask

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
TEXT = "encoder.layers.1.self_attn.q_proj"
KOHYA = LAYER.replace(".", "_")
SHAPES = {LAYER: (6, 5), OUT: (6, 6), CONV: (6, 4, 3, 3), "proj_in": (6, 6, 1, 1)}
RANK = 2
FIRST, SECOND = f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight"


def unet() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {f"{n}.weight": torch.randn(s, generator=generator) for n, s in SHAPES.items()}
    return weights | {f"{LAYER.replace('to_k', 'norm')}.bias": torch.zeros(6)}


def matrices(outputs: int, inputs: int, rank: int = RANK) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(rank, inputs, generator=generator),
        torch.randn(outputs, rank, generator=generator),
    )


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """write({...}): a LoRA file; `told`: what diffusers keeps in its metadata."""

    def make(tensors: dict[str, Tensor], told: Any = None) -> Path:
        metadata = None if told is None else {"lora_adapter_metadata": json.dumps(told)}
        save_file(tensors, tmp_path / "lora.safetensors", metadata)
        return tmp_path / "lora.safetensors"

    return make


DOWN, UP = matrices(6, 5)
NAMINGS = {
    "diffusers": (FIRST, SECOND),
    "diffusers 0.20": (f"unet.{LAYER}.lora.down.weight", f"unet.{LAYER}.lora.up.weight"),
    "diffusers 0.17": (
        f"unet.{LAYER.replace('.to_k', '.processor.to_k_lora')}.down.weight",
        f"unet.{LAYER.replace('.to_k', '.processor.to_k_lora')}.up.weight",
    ),
    "diffusers 0.12": (
        f"{LAYER.replace('.to_k', '.processor.to_k_lora')}.down.weight",
        f"{LAYER.replace('.to_k', '.processor.to_k_lora')}.up.weight",
    ),
    "kohya": (f"lora_unet_{KOHYA}.lora_down.weight", f"lora_unet_{KOHYA}.lora_up.weight"),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_lora_is_added_to_the_layer_it_names_and_to_no_other(naming, write):
    first, second = NAMINGS[naming]
    weights, untouched = unet(), unet()
    assert add_lora(weights, write({first: DOWN, second: UP}), part="unet") == 1
    torch.testing.assert_close(
        weights.pop(f"{LAYER}.weight"), untouched.pop(f"{LAYER}.weight") + UP @ DOWN
    )
    assert all(torch.equal(weights[name], untouched[name]) for name in untouched)


def test_the_last_projection_of_attention_is_found_under_its_old_name(write):
    down, up = matrices(6, 6)
    old = f"unet.{OUT.removesuffix('.to_out.0')}.processor.to_out_lora"
    weights = unet()
    add_lora(weights, write({f"{old}.down.weight": down, f"{old}.up.weight": up}), part="unet")
    torch.testing.assert_close(weights[f"{OUT}.weight"], unet()[f"{OUT}.weight"] + up @ down)


TEXT_NAMINGS = {
    "diffusers": ("text_encoder.text_model.{}.lora_A.weight", "lora_B"),
    "diffusers 0.20": ("text_encoder.text_model.{}.lora_linear_layer.down.weight", "up"),
    "diffusers 0.15": ("text_encoder.text_model.{old}_lora.down.weight", "up"),
    "peft in diffusers": ("text_encoder.base_model.model.text_model.{}.lora_A.weight", "lora_B"),
    "kohya": ("lora_te_text_model_{kohya}.lora_down.weight", "lora_up"),
}


@pytest.mark.parametrize("naming", TEXT_NAMINGS)
def test_a_text_encoders_lora_is_read_under_every_name(naming, write, tmp_path):
    pattern, other = TEXT_NAMINGS[naming]
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 2, "r": 2}')
    name = pattern.format(TEXT, old=TEXT.replace("q_proj", "to_q"), kohya=TEXT.replace(".", "_"))
    second = re.sub("lora_A|lora_down|down", other, name)
    weights = {f"text_model.{TEXT}.weight": torch.zeros(6, 5), "other.weight": torch.zeros(6, 5)}
    unets = {FIRST: torch.zeros(1), "lora_unet_x.dora_scale": torch.zeros(1)}
    assert add_lora(weights, write({name: DOWN, second: UP, **unets}), part="text_encoder") == 1
    torch.testing.assert_close(weights[f"text_model.{TEXT}.weight"], UP @ DOWN)
    assert not weights["other.weight"].any()


@pytest.mark.parametrize(
    ("told", "scale"),
    [
        ({"unet.lora_alpha": 8, "unet.r": 2, "text_encoder.lora_alpha": 1}, 4),
        ({"lora_alpha": 8, "r": 2}, 4),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / 2**0.5),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {LAYER: 1}}, 0.5),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_k": 6, "to_q": 1}}, 3),
        ({"text_encoder.lora_alpha": 1}, 1),
        (None, 1),
    ],
)
def test_the_alpha_of_diffusers_is_in_the_metadata(told, scale, write):
    weights = unet()
    add_lora(weights, write({FIRST: DOWN, SECOND: UP}, told), part="unet")
    expected = unet()[f"{LAYER}.weight"] + scale * UP @ DOWN
    torch.testing.assert_close(weights[f"{LAYER}.weight"], expected)


@pytest.mark.parametrize("told", ["4", ["unet.lora_alpha"], {"unet.lora_alpha": "8"}])
def test_metadata_that_says_no_alpha_is_refused(told, write):
    path = write({FIRST: DOWN, SECOND: UP}, told)
    with pytest.raises(UserError, match="not a JSON object|lora_alpha is '8', expected a number"):
        add_lora(unet(), path, part="unet")


def test_a_kohya_alpha_scales_its_own_layer(write):
    first, second = NAMINGS["kohya"]
    alpha = {f"lora_unet_{KOHYA}.alpha": torch.tensor(1.0)}
    weights = unet()
    add_lora(weights, write({first: DOWN, second: UP} | alpha), part="unet")
    expected = unet()[f"{LAYER}.weight"] + UP @ DOWN / RANK
    torch.testing.assert_close(weights[f"{LAYER}.weight"], expected)


def test_the_alpha_of_a_peft_file_is_in_the_config_beside_it(write, tmp_path):
    names = [f"base_model.model.{LAYER}.lora_{matrix}.weight" for matrix in "AB"]
    path = write(dict(zip(names, (DOWN, UP), strict=True)))
    with pytest.raises(UserError, match=r"adapter_config\.json.* it says the alpha of a peft file"):
        add_lora(unet(), path, part="unet")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 2}')
    weights = unet()
    add_lora(weights, path, part="unet")
    expected = unet()[f"{LAYER}.weight"] + 4 * UP @ DOWN
    torch.testing.assert_close(weights[f"{LAYER}.weight"], expected)


@pytest.mark.parametrize("layer", [CONV, "proj_in"])
def test_a_convolution_is_changed_in_its_kernel(layer, write):
    weight = unet()[f"{layer}.weight"]
    generator = torch.Generator().manual_seed(2)
    down = torch.randn(RANK, *weight.shape[1:], generator=generator)
    up = torch.randn(6, RANK, 1, 1, generator=generator)
    name = f"lora_unet_{layer.replace('.', '_')}"
    weights = unet()
    add_lora(
        weights,
        write({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}),
        part="unet",
    )
    inputs = torch.randn(1, weight.shape[1], 8, 8, generator=generator)
    padding = weight.shape[-1] // 2
    through = torch.conv2d(torch.conv2d(inputs, down, padding=padding), up)
    changed = torch.conv2d(inputs, weights[f"{layer}.weight"] - weight, padding=padding)
    torch.testing.assert_close(changed, through, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ("dora_scale", ", but of the kind 'DoRA'"),
        ("lora_magnitude_vector", ", but of the kind 'DoRA'"),
        ("lora_magnitude_vector.default.weight", ", but of the kind 'DoRA'"),
        ("lora_mid.weight", ", but of the kind 'LoRA with a middle matrix'"),
        ("diff", ", but of the kind 'whole difference'"),
        ("diff_b", ", but of the kind 'whole difference'"),
        ("hada_w1_a", ", but of the kind 'LoHa'"),
        ("lokr_w1", ", but of the kind 'LoKr'"),
        ("oft_blocks", ", but of the kind 'OFT'"),
        ("lora_B.bias", ", but of the kind 'LoRA with biases'"),
        ("lora_B.default.bias", ", but of the kind 'LoRA with biases'"),
        ("lora_embedding_A", ", but of the kind 'LoRA of embeddings'"),
        ("alpha.weight", ""),
        ("lora_A", ""),
        ("lora_A.default", ""),
        ("lora_A.a.b.weight", ""),
        ("base_layer.weight", ""),
    ],
)
@pytest.mark.parametrize("start", [f"lora_unet_{KOHYA}.", f"unet.{LAYER}."])
def test_what_is_more_than_a_plain_lora_is_refused_by_its_kind(start, ending, kind, write):
    path = write({FIRST: DOWN, SECOND: UP, start + ending: torch.zeros(6)})
    message = f"holds '{start}{ending}', which is no matrix or alpha of a plain LoRA{kind}; only"
    with pytest.raises(UserError, match=re.escape(message)):
        add_lora(unet(), path, part="unet")


EMBEDDINGS = {
    "bundle_emb.night-rain.string_to_param.*": torch.zeros(2, 5),
    "bundle_emb.bad hands.emb_params": torch.zeros(1, 5),
}


def test_textual_inversions_in_the_file_are_passed_over_and_named(write):
    first, second = NAMINGS["kohya"]
    path = write({first: DOWN, second: UP, **EMBEDDINGS})
    weights = unet()
    assert add_lora(weights, path, part="unet") == 1
    torch.testing.assert_close(weights[f"{LAYER}.weight"], unet()[f"{LAYER}.weight"] + UP @ DOWN)
    assert add_lora({}, path, part="text_encoder") == 0
    assert embeddings_in(path) == ["bad hands", "night-rain"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(1)}, "holds 'weight', which is no LoRA matrix of the unet or the"),
        ({"lora_te2_x.alpha": torch.zeros(1)}, "holds 'lora_te2_x.alpha', which is no LoRA matrix"),
        ({FIRST: DOWN}, "holds one matrix for"),
        ({FIRST: DOWN, SECOND: UP[:, :1]}, "whose ranks 2 and 1 differ"),
        ({FIRST: DOWN[:, :4], SECOND: UP}, r"\(2, 4\) and \(6, 2\), expected \(2, 5\) and \(6, 2"),
        ({FIRST: UP.T, SECOND: DOWN.T}, r"\(2, 6\) and \(5, 2\), expected \(2, 5\) and \(6, 2\)"),
        ({FIRST: DOWN[0], SECOND: UP}, "expected 2 or 4 sides"),
        ({FIRST: DOWN.to(torch.int8), SECOND: UP}, "is of type int8, expected floating point"),
        (
            {FIRST: DOWN, SECOND: UP, NAMINGS["kohya"][0]: DOWN},
            r"lora_A\.weight' under two names",
        ),
        ({"unet.nowhere.lora_A.weight": DOWN, "unet.nowhere.lora_B.weight": UP}, "no layer 'nowh"),
        ({FIRST: DOWN, SECOND: UP, f"lora_unet_{KOHYA}.alpha": torch.zeros(2)}, "is 2 values"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_what_is_wrong(tensors, message, write):
    path = write({name: tensor.clone().contiguous() for name, tensor in tensors.items()})
    with pytest.raises(UserError, match=message):
        add_lora(unet(), path, part="unet")


def test_an_image_model_takes_the_unets_part_of_a_file(tmp_path, small_unet, small_vae, write):
    small_unet("sd1").save_pretrained(tmp_path / "model" / "unet")
    small_vae().save_pretrained(tmp_path / "model" / "vae")
    ScheduleConfig().build().save(tmp_path / "model" / "scheduler")
    weight = small_unet("sd1").get_parameter(f"{LAYER}.weight")
    down, up = matrices(*weight.shape)
    path = write({FIRST: down, SECOND: up})
    changed = load_image_model(tmp_path / "model", loras=[path]).unet.get_parameter(
        f"{LAYER}.weight"
    )
    torch.testing.assert_close(changed, weight + up @ down)
    of_text = write({name.replace("unet.", "text_encoder."): t for name, t in [(FIRST, down)]})
    with pytest.raises(UserError, match="holds no LoRA matrices for the unet"):
        load_image_model(tmp_path / "model", loras=[of_text])


def test_an_image_model_says_which_textual_inversions_were_left_out(
    tmp_path, small_unet, small_vae, write
):
    small_unet("sd1").save_pretrained(tmp_path / "model" / "unet")
    small_vae().save_pretrained(tmp_path / "model" / "vae")
    ScheduleConfig().build().save(tmp_path / "model" / "scheduler")
    down, up = matrices(*small_unet("sd1").get_parameter(f"{LAYER}.weight").shape)
    path = write({FIRST: down, SECOND: up, **EMBEDDINGS})
    (remark,) = load_image_model(tmp_path / "model", loras=[path]).remarks
    assert "without the textual inversions in the file ('bad hands', 'night-rain')" in remark
    brought = Brought(model="image", source=str(tmp_path / "model"), loras=(path,))
    assert BroughtTask(brought, null_text=torch.zeros(1, 48)).remark == remark
    plain = write({FIRST: down, SECOND: up})
    assert load_image_model(tmp_path / "model", loras=[plain]).remarks == ()
