"""A brought model is read, checked for its use, and published as it is."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from tests.videoldm_core.single_files import unet_like, write_single_file
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.models.denoiser import load_denoiser
from videoldm_core.models.frozen_encoder import load_frozen_encoder
from videoldm_core.models.image import load_unet, load_vae
from videoldm_core.objectives.denoising import ScheduleConfig
from videoldm_core.objectives.pretrained import Brought, BroughtTask, check_folder

NULL_TEXT = torch.zeros(8, 32)  # of the image model's tower
NULL_TEXT_OF_X4 = torch.zeros(8, 48)


def published(config: Brought, to: Path, null_text: Tensor = NULL_TEXT) -> dict[str, Path]:
    return {name: to / name for name in BroughtTask(config, null_text=null_text).save(to)}


def tiny_autoencoder(folder: Path, *, blocks: int = 4) -> Path:
    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8,) * blocks,
        decoder_block_out_channels=(8,) * blocks,
        num_encoder_blocks=(1,) * blocks,
        num_decoder_blocks=(1,) * blocks,
    ).save_pretrained(folder)
    return folder


def test_an_image_model_is_published_with_its_weights_and_schedule(stable_diffusion, tmp_path):
    parts = published(Brought(model="image", source=str(stable_diffusion)), tmp_path)
    assert sorted(parts) == ["scheduler", "unet", "vae"]
    for load, part in ((load_unet, "unet"), (load_vae, "vae")):
        own, theirs = load(parts[part]).state_dict(), load(stable_diffusion / part).state_dict()
        assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    model = load_denoiser(parts)
    assert model.scale == 0.18215
    assert model.own_vae is None
    assert model.schedule.predicts == "v_prediction"


def test_an_upscaler_is_published_with_the_autoencoder_as_its_own(x4_upscaler, tmp_path):
    config = Brought(model="upscaler", source=str(x4_upscaler))
    parts = published(config, tmp_path, NULL_TEXT_OF_X4)
    assert sorted(parts) == ["own_vae", "scheduler", "unet"]
    model = load_denoiser(parts)
    assert (model.shrinks, model.scale) == (4, 0.08333)


def test_an_upscaler_in_one_file_is_published_with_its_scale_and_three_levels(tmp_path):
    path = write_single_file(tmp_path / "x4.safetensors", "x4")
    config = Brought(model="upscaler", source=str(path))
    task = BroughtTask(config, null_text=torch.zeros(8, 128))
    names = task.save(tmp_path / "out")
    assert sorted(names) == ["own_vae", "scheduler", "unet"]
    model = load_denoiser({name: tmp_path / "out" / name for name in names})
    assert (model.shrinks, model.scale) == (4, 0.08333)
    assert model.schedule.predicts == "v_prediction"
    assert model.schedule.config["beta_end"] == 0.02
    own, theirs = load_unet(tmp_path / "out" / "unet").state_dict(), unet_like("x4").state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)


def test_a_file_with_averages_says_that_its_own_weights_are_used(tmp_path):
    def average(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("model.diffusion_model.")]:
            own = name.removeprefix("model.").replace(".", "")
            tensors[f"model_ema.{own}"] = tensors[name] / 2

    def task(change=None, **settings: bool) -> BroughtTask:
        path = write_single_file(tmp_path / "sd.safetensors", "sd1", change)
        config = Brought(model="image", source=str(path), **settings)
        return BroughtTask(config, null_text=torch.zeros(8, 48))

    assert "objective.ema=true takes the averaged ones" in task(average).remark
    assert task().remark == ""
    averaged = task(average, ema=True)
    assert averaged.remark == ""
    weight = averaged.model.unet.get_parameter("conv_in.weight")
    assert torch.equal(weight, unet_like("sd1").get_parameter("conv_in.weight") / 2)


def test_a_brought_model_trains_nothing(stable_diffusion):
    config = Brought(model="image", source=str(stable_diffusion))
    assert BroughtTask(config, null_text=NULL_TEXT).players == []


def test_an_upscaler_is_refused_as_image_model_and_the_reverse(stable_diffusion, x4_upscaler):
    with pytest.raises(UserError, match=r"not like Stable Diffusion.*takes 7 channels, expected 4"):
        BroughtTask(Brought(model="image", source=str(x4_upscaler)), null_text=NULL_TEXT)
    with pytest.raises(UserError, match=r"not like the x4-upscaler.*takes 4 channels, expected 7"):
        BroughtTask(Brought(model="upscaler", source=str(stable_diffusion)), null_text=NULL_TEXT)


def test_an_upscaler_with_another_schedule_for_its_low_resolution_is_refused(x4_upscaler, tmp_path):
    for part in ("unet", "vae", "scheduler"):
        (tmp_path / part).symlink_to(x4_upscaler / part)
    ScheduleConfig(beta_start=1e-4, beta_end=0.03).build().save(tmp_path / "low_res_scheduler")
    assert NoiseSchedule.load(tmp_path / "scheduler").timesteps == 1000
    with pytest.raises(UserError, match="other noise levels than the scheduler beside it"):
        BroughtTask(Brought(model="upscaler", source=str(tmp_path)), null_text=NULL_TEXT_OF_X4)


def test_a_tiny_encoder_in_its_place_gives_latents_of_the_same_scale(stable_diffusion, tmp_path):
    tiny = tiny_autoencoder(tmp_path / "tiny")
    config = Brought(model="image", source=str(stable_diffusion), encoder=tiny)
    encoder = load_frozen_encoder(published(config, tmp_path / "out")["encoder"])
    frames = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scaled = load_frozen_encoder(tiny).encode(frames).latents  # what tiny autoencoders give
    unscaled = encoder.encode(frames).latents
    torch.testing.assert_close(unscaled * 0.18215, scaled)
    assert encoder.config.scaling_factor == 0.18215  # type: ignore[union-attr]


def test_an_encoder_whose_latents_do_not_fit_is_refused(stable_diffusion, tmp_path):
    config = Brought(model="image", source=str(stable_diffusion))
    wrong = config.model_copy(update={"encoder": tiny_autoencoder(tmp_path / "3", blocks=3)})
    with pytest.raises(UserError, match=r"4 channels, 4 times smaller.* 4 and are 8 times"):
        BroughtTask(wrong, null_text=NULL_TEXT).save(tmp_path / "out")
    kl = config.model_copy(update={"encoder": stable_diffusion / "vae"})
    with pytest.raises(UserError, match="expected an AutoencoderTiny"):
        BroughtTask(kl, null_text=NULL_TEXT).save(tmp_path / "out2")


def test_a_model_that_reads_other_texts_is_refused(x4_upscaler):
    config = Brought(model="upscaler", source=str(x4_upscaler))
    with pytest.raises(UserError, match=r"reads text embeddings of 48 values.* this run gives 768"):
        BroughtTask(config, null_text=torch.zeros(77, 768))


@pytest.mark.parametrize(
    "content", ["[]", "{", "7", '{"in_channels": "many"}', '{"block_out_channels": 4}']
)
def test_a_folder_of_no_use_is_refused_before_a_weight_is_read(tmp_path, content):
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json|is not like Stable Diffusion"):
        check_folder(Brought(model="image", source=str(tmp_path)))


def test_a_folder_of_use_is_not_refused(stable_diffusion, x4_upscaler, tmp_path):
    for model, folder in (("image", stable_diffusion), ("upscaler", x4_upscaler)):
        config = Brought(model=model, source=str(folder))  # type: ignore[arg-type]
        assert check_folder(config) is None, "no sentence is raised"
    with pytest.raises(UserError, match=r"not like the x4-upscaler.*takes 4 channels"):
        check_folder(Brought(model="upscaler", source=str(stable_diffusion)))
