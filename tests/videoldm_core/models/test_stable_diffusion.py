"""Image models that people have: folders, LoRAs and text encoders give the weights they hold."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from videoldm_core.errors import UserError
from videoldm_core.models.stable_diffusion import load_image_model, load_text_tower
from videoldm_core.models.text import TextConfig, TextTower
from videoldm_core.objectives.denoising import ScheduleConfig


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
def folder(tmp_path, small_unet, small_vae) -> Path:
    """A diffusers folder."""
    small_unet("sd1").save_pretrained(tmp_path / "model" / "unet")
    small_vae().save_pretrained(tmp_path / "model" / "vae")
    ScheduleConfig(predicts="v_prediction").build().save(tmp_path / "model" / "scheduler")
    return tmp_path / "model"


def test_a_folder_gives_its_weights_and_its_own_schedule(folder, small_unet):
    model = load_image_model(folder)
    assert model.schedule.predicts == "v_prediction"
    expected = small_unet("sd1").state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in model.unet.state_dict().items())
    with pytest.raises(UserError, match="leave predicts= out"):
        load_image_model(folder, predicts="epsilon")


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
def test_a_lora_is_added_to_the_layer_it_names(naming, folder, small_unet, tmp_path):
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
