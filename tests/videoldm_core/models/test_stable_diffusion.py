"""Image models that people have: folders, single files and LoRAs give the weights they hold."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from videoldm_core.errors import UserError
from videoldm_core.models.image import AutoencoderConfig
from videoldm_core.models.single_file import unet_config_of
from videoldm_core.models.stable_diffusion import load_image_model, load_text_tower
from videoldm_core.models.text import TextConfig, TextTower
from videoldm_core.objectives.denoising import ScheduleConfig

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "class_embedding": "label_emb",
}
VAE = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}
SMALL = {"layers_per_block": 2, "norm_num_groups": 32}
FAMILIES = {
    "sd1": {"cross_attention_dim": 48, "attention_head_dim": 8},
    "sd2": {
        "cross_attention_dim": 40,
        "attention_head_dim": [1, 1, 2],
        "use_linear_projection": True,
        "block_out_channels": (64, 64, 128),
    },
    "x4": {
        "in_channels": 7,
        "cross_attention_dim": 128,
        "attention_head_dim": 8,
        "use_linear_projection": True,
        "num_class_embeds": 100,
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "only_cross_attention": (False, True, False),
    },
}


def small_unet(family: str) -> UNet2DConditionModel:
    """A UNet laid out as the family's, with few channels."""
    shape = {
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    }
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**SMALL, **shape, **FAMILIES[family]}).eval()


def in_the_authors_layout(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The UNet's tensors under CompVis' names."""
    per_level = unet.config.layers_per_block + 1

    def renamed(name: str) -> str:
        for ours, theirs in OUTSIDE.items():
            if name.startswith(f"{ours}."):
                return theirs + name.removeprefix(ours)
        side, rest = re.fullmatch(r"(down_blocks|mid_block|up_blocks)\.(.+)", name).groups()
        level, rest = (0, rest) if side == "mid_block" else (int(rest[0]), rest[2:])
        kind, index, inner = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", rest).groups()
        if kind == "resnets":
            inner = re.sub(r"^\w+", lambda found: RESNET[found[0]], inner)
        place = level * per_level + int(index)
        if side == "mid_block":
            return f"middle_block.{2 * int(index) if kind == 'resnets' else 1}.{inner}"
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * per_level}.0.{inner.replace('conv', 'op')}"
        if kind == "upsamplers":
            has_attention = "CrossAttn" in unet.config.up_block_types[level]
            return f"output_blocks.{(level + 1) * per_level - 1}.{1 + has_attention}.{inner}"
        blocks = f"input_blocks.{1 + place}" if side == "down_blocks" else f"output_blocks.{place}"
        return f"{blocks}.{0 if kind == 'resnets' else 1}.{inner}"

    named = {renamed(name): tensor for name, tensor in unet.state_dict().items()}
    return {f"model.diffusion_model.{name}": tensor for name, tensor in named.items()}


def vae_in_the_authors_layout(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The autoencoder's tensors under CompVis' names; attention there is 1x1 convolutions."""
    levels = len(vae.config.block_out_channels)

    def renamed(name: str) -> str:
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
        name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
        name = name.replace("resnets", "block")
        name = re.sub(r"(down|up)samplers\.0", r"\1sample", name)
        for ours, theirs in VAE.items():
            name = re.sub(rf"(?<=\.){re.escape(ours)}(?=\.)", theirs, name)
        return name

    named = {renamed(name): tensor for name, tensor in vae.state_dict().items()}
    for name, tensor in named.items():
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            named[name] = tensor[:, :, None, None]
    return {f"first_stage_model.{name}": tensor.contiguous() for name, tensor in named.items()}


def small_vae() -> AutoencoderKL:
    return AutoencoderConfig(widths=(32, 32, 32, 64), layers_per_block=2, groups=32).build(0)


@pytest.fixture(scope="module")
def write_file(tmp_path_factory) -> Callable[..., Path]:
    """write_file("sd1"): a single file of that family; `suffix` and `change` vary it."""

    def write(family: str, suffix: str = ".safetensors", change: Callable | None = None) -> Path:
        path = tmp_path_factory.mktemp(family) / f"model{suffix}"
        tensors = in_the_authors_layout(small_unet(family))
        tensors |= vae_in_the_authors_layout(small_vae())
        if change:
            change(tensors)
        if suffix == ".safetensors":
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        else:
            torch.save({"state_dict": tensors, "global_step": 7}, path)
        return path

    return write


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_is_the_model_it_was_written_from(family, suffix, write_file):
    predicts = "v_prediction" if family == "sd2" else None
    model = load_image_model(write_file(family, suffix), predicts=predicts)
    expected, vae = small_unet(family), small_vae()
    for loaded, original in ((model.unet, expected), (model.vae, vae)):
        tensors = original.state_dict()
        assert loaded.state_dict().keys() == tensors.keys()
        assert all(torch.equal(loaded.state_dict()[name], tensors[name]) for name in tensors)
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, expected.config.in_channels, 16, 16, generator=generator)
    text = torch.randn(2, 5, expected.config.cross_attention_dim, generator=generator)
    levels = torch.tensor([3, 50]) if family == "x4" else None
    with torch.no_grad():
        ours, theirs = (
            net(noisy, torch.tensor([10, 900]), text, class_labels=levels).sample
            for net in (model.unet, expected)
        )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("family", "predicts", "beta_end"),
    [("sd1", "epsilon", 0.012), ("x4", "v_prediction", 0.02)],
)
def test_the_schedule_is_that_of_the_family(family, predicts, beta_end, write_file):
    schedule = load_image_model(write_file(family)).schedule
    assert schedule.predicts == predicts
    assert schedule.config["beta_end"] == beta_end
    assert schedule.config["beta_schedule"] == "scaled_linear"


def test_betas_in_the_file_win(write_file):
    betas = torch.linspace(1e-4, 0.03, 500)
    path = write_file("sd1", change=lambda tensors: tensors.update(betas=betas))
    schedule = load_image_model(path).schedule
    assert schedule.timesteps == 500
    last = torch.tensor([499])
    expected = (1 - betas.double()).cumprod(0)[-1].sqrt().float()
    torch.testing.assert_close(schedule.alpha(last).flatten()[0], expected)


def test_a_second_version_file_must_be_told_what_it_predicts(write_file):
    path = write_file("sd2")
    with pytest.raises(UserError, match="set predicts="):
        load_image_model(path)
    assert load_image_model(path, predicts="epsilon").schedule.predicts == "epsilon"


def test_half_precision_weights_become_float32(write_file):
    def halve(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    model = load_image_model(write_file("sd1", change=halve))
    kinds = {p.dtype for part in (model.unet, model.vae) for p in part.parameters()}
    assert kinds == {torch.float32}


def test_a_key_that_is_missing_or_of_another_shape_is_named(write_file):
    key = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    path = write_file("sd1", change=lambda tensors: tensors.pop(key))
    with pytest.raises(UserError, match=r"mid_block\.resnets\.0\.conv1\.weight"):
        load_image_model(path)
    path = write_file("sd1", change=lambda tensors: tensors.update({key: torch.zeros(3, 3)}))
    with pytest.raises(UserError, match=r"conv1\.weight.*\(3, 3\).*expected"):
        load_image_model(path)


def test_what_is_no_image_model_is_refused_in_a_sentence(write_file, tmp_path):
    with pytest.raises(UserError, match="Cannot read"):
        load_image_model(tmp_path / "nothing.safetensors")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(UserError, match="Cannot read"):
        load_image_model(tmp_path / "text.ckpt")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="input_blocks"):
        load_image_model(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="scheduler"):
        load_image_model(tmp_path)
    whole = write_file("sd1").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="Cannot read"):
        load_image_model(tmp_path / "cut.safetensors")


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (ran,))

    torch.save({"state_dict": {"weight": Hostile()}}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="Cannot read"):
        load_image_model(tmp_path / "model.ckpt")
    assert not ran.exists()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A diffusers folder."""
    small_unet("sd1").save_pretrained(tmp_path / "model" / "unet")
    small_vae().save_pretrained(tmp_path / "model" / "vae")
    ScheduleConfig(predicts="v_prediction").build().save(tmp_path / "model" / "scheduler")
    return tmp_path / "model"


def test_a_folder_gives_its_weights_and_its_own_schedule(folder):
    model = load_image_model(folder)
    assert model.schedule.predicts == "v_prediction"
    expected = small_unet("sd1").state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in model.unet.state_dict().items())
    with pytest.raises(UserError, match="leave predicts= out"):
        load_image_model(folder, predicts="epsilon")


def test_what_was_loaded_is_saved_as_parts_that_load_again(folder, write_file, tmp_path):
    model = load_image_model(write_file("sd1"))
    assert model.save(tmp_path / "parts") == ["unet", "vae", "scheduler"]
    again = load_image_model(tmp_path / "parts")
    assert again.vae.config.scaling_factor == 0.18215
    assert again.schedule.predicts == "epsilon"
    expected = model.unet.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in again.unet.state_dict().items())


LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
NAMINGS = {
    "diffusers": (f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight"),
    "old diffusers": (
        f"unet.{LAYER.replace('.to_k', '.processor.to_k_lora')}.down.weight",
        f"unet.{LAYER.replace('.to_k', '.processor.to_k_lora')}.up.weight",
    ),
    "kohya": (
        f"lora_unet_{LAYER.replace('.', '_')}.lora_down.weight",
        f"lora_unet_{LAYER.replace('.', '_')}.lora_up.weight",
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_lora_is_added_to_the_layer_it_names(naming, folder, tmp_path):
    weight = small_unet("sd1").get_parameter(f"{LAYER}.weight")
    generator = torch.Generator().manual_seed(4)
    down = torch.randn(4, weight.shape[1], generator=generator)
    up = torch.randn(weight.shape[0], 4, generator=generator)
    first, second = NAMINGS[naming]
    tensors = {first: down, second: up}
    scale = 1.0
    if naming == "kohya":
        tensors[first.replace("lora_down.weight", "alpha")] = torch.tensor(2.0)
        scale = 2 / 4
    save_file(tensors, tmp_path / "lora.safetensors")
    model = load_image_model(folder, loras=[tmp_path / "lora.safetensors"])
    changed = model.unet.get_parameter(f"{LAYER}.weight")
    torch.testing.assert_close(changed, weight + scale * up @ down)
    untouched = small_unet("sd1").state_dict()
    others = [name for name in untouched if name != f"{LAYER}.weight"]
    assert all(torch.equal(model.unet.state_dict()[name], untouched[name]) for name in others)


def test_a_lora_of_another_model_is_refused_by_the_layer_it_names(folder, tmp_path):
    def write(tensors: dict[str, Tensor]) -> list[Path]:
        save_file(tensors, tmp_path / "lora.safetensors")
        return [tmp_path / "lora.safetensors"]

    first, second = NAMINGS["diffusers"]
    with pytest.raises(UserError, match="no LoRA matrices"):
        load_image_model(folder, loras=write({"weight": torch.zeros(1)}))
    with pytest.raises(UserError, match="one matrix"):
        load_image_model(folder, loras=write({first: torch.zeros(4, 48)}))
    with pytest.raises(UserError, match="expected"):
        load_image_model(
            folder, loras=write({first: torch.zeros(4, 7), second: torch.zeros(32, 4)})
        )
    with pytest.raises(UserError, match="has no layer 'nowhere'"):
        load_image_model(folder, loras=write({"unet.nowhere.lora_A.weight": torch.zeros(4, 7)}))


def test_the_text_encoder_of_a_second_version_file_is_open_clips_own(tmp_path):
    config = TextConfig(context_length=12, width=64, heads=1, layers=3, output="penultimate")
    tower = TextTower.build(config)
    named = {f"cond_stage_model.model.{n}": t for n, t in tower.transformer.state_dict().items()}
    named["cond_stage_model.model.text_projection"] = torch.zeros(64, 32)
    save_file({n: t.contiguous() for n, t in named.items()}, tmp_path / "model.safetensors")
    loaded = load_text_tower(tmp_path / "model.safetensors")
    captions = ["a red car overtakes at night", ""]
    assert torch.equal(loaded.encode(captions), tower.encode(captions))


def test_a_file_without_text_encoder_says_so(write_file):
    with pytest.raises(UserError, match="holds no text encoder"):
        load_text_tower(write_file("sd1"))


@pytest.mark.parametrize(
    ("version", "widths", "text", "heads"),
    [("1", (320, 640, 1280, 1280), 768, 8), ("2", (320, 640, 1280, 1280), 1024, [5, 10, 20, 20])],
)
def test_the_published_sizes_are_recognised(version, widths, text, heads):
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=widths,
            cross_attention_dim=text,
            attention_head_dim=heads,
            use_linear_projection=version == "2",
        )
    tensors = in_the_authors_layout(unet)
    own = {name.removeprefix("model.diffusion_model."): t for name, t in tensors.items()}
    config = unet_config_of(own, where="the file")
    for key in ("block_out_channels", "down_block_types", "up_block_types"):
        assert tuple(config[key]) == tuple(unet.config[key])
    assert config["attention_head_dim"] == heads
    assert config["cross_attention_dim"] == text
    assert config["layers_per_block"] == 2
