"""Image models that people have: folders, LoRAs and text encoders give the weights they hold."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from videoldm_core.errors import UserError
from videoldm_core.models.pretrained.stable_diffusion import load_image_model, load_text_tower
from videoldm_core.models.text.encoder import TextConfig, TextTower
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


def test_the_text_encoder_of_a_second_version_file_is_open_clips_own(tmp_path):
    config = TextConfig(context_length=12, width=64, heads=1, layers=3, output="penultimate")
    tower = TextTower.build(config)
    named = {f"cond_stage_model.model.{n}": t for n, t in tower.transformer.state_dict().items()}
    named["cond_stage_model.model.text_projection"] = torch.zeros(64, 32)
    save_file({n: t.contiguous() for n, t in named.items()}, tmp_path / "model.safetensors")
    loaded = load_text_tower(tmp_path / "model.safetensors")
    captions = ["a red car overtakes at night", ""]
    assert torch.equal(loaded.encode(captions), tower.encode(captions))


def test_a_second_version_file_that_was_made_of_a_folder_reads_the_layer_that_the_folder_does(
    tmp_path,
):
    """Converters copy the 23 layers that folders hold; 24 are OpenCLIP's own."""
    whole = TextConfig(context_length=12, width=64, heads=1, layers=24, output="penultimate")
    tower, captions = TextTower.build(whole), ["a red car overtakes at night", ""]
    kept = {
        f"cond_stage_model.model.{name}": tensor.contiguous()
        for name, tensor in tower.transformer.state_dict().items()
        if ".resblocks.23." not in name
    }
    save_file(kept, tmp_path / "model.safetensors")
    loaded = load_text_tower(tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded.encode(captions), tower.encode(captions))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_lora_for_queries_keys_or_values_changes_its_rows_of_a_second_version_file(
    tmp_path, rows
):
    tower = TextTower.build(TextConfig(context_length=12, width=64, heads=1, layers=3))
    named = {f"cond_stage_model.model.{n}": t for n, t in tower.transformer.state_dict().items()}
    save_file({n: t.contiguous() for n, t in named.items()}, tmp_path / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(2, 64, generator=generator), torch.randn(64, 2, generator=generator)
    layer = f"lora_te_text_model_encoder_layers_1_self_attn_{'qkv'[rows]}_proj"
    lora = {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
    save_file(lora, tmp_path / "lora.safetensors")
    changed = load_text_tower(
        tmp_path / "model.safetensors", loras=[tmp_path / "lora.safetensors"]
    ).transformer.get_parameter("transformer.resblocks.1.attn.in_proj_weight")
    difference = changed - tower.transformer.get_parameter(
        "transformer.resblocks.1.attn.in_proj_weight"
    )
    expected = torch.zeros(3, 64, 64)
    expected[rows] = up @ down
    torch.testing.assert_close(difference, expected.flatten(0, 1), rtol=1e-4, atol=1e-5)
