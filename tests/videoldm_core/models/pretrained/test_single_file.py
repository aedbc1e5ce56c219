"""Image models in one file, in their authors' layout, are the models they were written from."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from tests.videoldm_core.single_files import in_the_authors_layout, vae_like, write_single_file
from videoldm_core.errors import UserError
from videoldm_core.models.pretrained.single_file import unet_config_of
from videoldm_core.models.pretrained.stable_diffusion import load_image_model, load_text_tower


@pytest.fixture(scope="module")
def write_file(tmp_path_factory) -> Callable[..., Path]:
    """write_file("sd1"): a single file of that family; `suffix` and `change` vary it."""

    def write(family: str, suffix: str = ".safetensors", change: Callable | None = None) -> Path:
        path = tmp_path_factory.mktemp(family) / f"model{suffix}"
        return write_single_file(path, family, change)

    return write


@pytest.mark.parametrize("family", ["sd1", "sd2", "x4"])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_is_the_model_it_was_written_from(family, suffix, write_file, small_unet):
    predicts = "v_prediction" if family == "sd2" else None
    model = load_image_model(write_file(family, suffix), predicts=predicts)
    expected, vae = small_unet(family), vae_like(family)
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


def test_quantised_weights_are_refused_by_key_and_type(write_file):
    def quantise(tensors: dict[str, Tensor]) -> None:
        name = "model.diffusion_model.middle_block.0.in_layers.2.weight"
        tensors[name] = tensors[name].to(torch.int8)

    with pytest.raises(UserError, match=r"conv1\.weight' is of type int8, expected floating"):
        load_image_model(write_file("sd1", change=quantise))


def averaged(tensors: dict[str, Tensor]) -> None:
    """Adds averages as CompVis' training writes them: half the weights, to be told apart."""
    unet = [name for name in tensors if name.startswith("model.diffusion_model.")]
    for name in unet:
        tensors["model_ema." + name.removeprefix("model.").replace(".", "")] = tensors[name] / 2
    tensors["model_ema.decay"] = torch.tensor(0.9999)
    tensors["model_ema.num_updates"] = torch.tensor(3, dtype=torch.int32)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_of_a_file_with_averages_the_asked_for_weights_are_taken(suffix, write_file, small_unet):
    path, raw = write_file("sd1", suffix, averaged), small_unet("sd1").state_dict()
    for ema, share in ((False, 1), (True, 0.5)):
        model = load_image_model(path, ema=ema)
        assert model.has_averages
        found = model.unet.state_dict()
        assert all(torch.equal(found[name], tensor * share) for name, tensor in raw.items())


def test_averages_that_are_not_there_are_refused(write_file, tmp_path):
    def lose_one(tensors: dict[str, Tensor]) -> None:
        averaged(tensors)
        del tensors["model_ema.diffusion_modelinput_blocks00weight"]

    assert not load_image_model(write_file("sd1")).has_averages
    for change in (None, lose_one):
        with pytest.raises(UserError, match=r"lacks 'model_ema\.diffusion_model.*leave ema= out"):
            load_image_model(write_file("sd1", change=change), ema=True)
    load_image_model(write_file("sd1")).save(tmp_path)
    with pytest.raises(UserError, match="is a folder, which holds one set of weights"):
        load_image_model(tmp_path, ema=True)


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


def test_what_was_loaded_is_saved_as_parts_that_load_again(write_file, tmp_path):
    model = load_image_model(write_file("sd1"))
    assert model.save(tmp_path / "parts") == ["unet", "vae", "scheduler"]
    again = load_image_model(tmp_path / "parts")
    assert again.vae.config.scaling_factor == 0.18215
    assert again.schedule.predicts == "epsilon"
    expected = model.unet.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in again.unet.state_dict().items())


def test_an_autoencoder_of_unknown_scale_is_refused(write_file):
    def deepen(tensors: dict[str, Tensor]) -> None:
        name = "first_stage_model.encoder.down.3.block.0.conv2.weight"
        tensors[name.replace("down.3", "down.4")] = tensors[name].clone()

    with pytest.raises(UserError, match="5 levels"):
        load_image_model(write_file("sd1", change=deepen))


def test_a_file_without_text_encoder_says_so(write_file):
    with pytest.raises(UserError, match="holds no text encoder"):
        load_text_tower(write_file("sd1"))


PUBLISHED = {
    "1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "2": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "x4": {
        "in_channels": 7,
        "block_out_channels": (256, 512, 512, 1024),
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        "only_cross_attention": (True, True, True, False),
        "cross_attention_dim": 1024,
        "attention_head_dim": 8,
        "use_linear_projection": True,
        "num_class_embeds": 1000,
    },
}


@pytest.mark.parametrize("version", PUBLISHED)
def test_the_published_sizes_are_recognised(version):
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            **{"block_out_channels": (320, 640, 1280, 1280), **PUBLISHED[version]}
        )
    tensors = in_the_authors_layout(unet)
    own = {name.removeprefix("model.diffusion_model."): t for name, t in tensors.items()}
    config = unet_config_of(own, where="the file")
    for key in ("block_out_channels", "down_block_types", "up_block_types"):
        assert tuple(config[key]) == tuple(unet.config[key])
    told = PUBLISHED[version]
    assert config["attention_head_dim"] == told["attention_head_dim"]
    assert config["cross_attention_dim"] == told["cross_attention_dim"]
    assert config["num_class_embeds"] == told.get("num_class_embeds")
    assert config["in_channels"] == told.get("in_channels", 4)
    assert config["layers_per_block"] == 2
    with torch.device("meta"):
        again = UNet2DConditionModel(**config)
    shapes = [{name: t.shape for name, t in net.state_dict().items()} for net in (unet, again)]
    assert shapes[0] == shapes[1]
