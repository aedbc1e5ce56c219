"""A stage's networks as shapes alone are those that training builds; unknown sizes are named."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from videoldm_core.cascade.stage import preset
from videoldm_core.errors import UserError
from videoldm_core.memory.evaluation import judging_bytes
from videoldm_core.memory.live import activation_bytes
from videoldm_core.memory.networks import inputs_on_meta, networks_on_meta, table_on_meta
from videoldm_core.memory.stages import expected_memory
from videoldm_core.models.discriminator import CriticConfig
from videoldm_core.models.perceptual import Perceptual, PerceptualConfig
from videoldm_core.models.temporal_layers import count_parameters
from videoldm_core.objectives.autoencoding import AutoencodingTask
from videoldm_core.objectives.denoising import DenoisingTask

TINY = preset("tiny")
NULL_TEXT = torch.zeros(16, 64)
A_PASS = 700_000  # bytes: more than a forward pass on a dot, less than the smallest network
FULL_UNET = {
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "attention_head_dim": (5, 10, 20, 20),
}
FULL_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}


def networks_of(table) -> dict:
    return {stage.name: networks for stage, _, networks in table_on_meta(table)}


def trained(module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in module.named_parameters() if p.requires_grad}


def brought(folder):
    """Configs of Stable Diffusion 2, without weights, as the run's brought image model."""
    with torch.device("meta"):
        UNet2DConditionModel(**FULL_UNET).save_config(folder / "unet")
        AutoencoderKL(**FULL_VAE).save_config(folder / "vae")
    table = preset("text_to_video")
    row = table.stage("image_model")
    row = row.model_copy(
        update={"objective": row.objective.model_copy(update={"source": str(folder)})}
    )
    return table.model_copy(update={"stages": (row, *table.stages[1:])})


def test_what_trains_has_the_names_and_shapes_that_training_gives_it():
    found = networks_of(TINY)
    row = TINY.stage("autoencoder")
    real = AutoencodingTask(row.objective, optimizer=row.optimizer, seed=0)
    assert trained(found["autoencoder"].players["autoencoder"]) == trained(real.players[0].module)
    row = TINY.stage("image_upscaler")
    real = DenoisingTask(
        row.objective,
        parts={},
        trains=row.trains,
        frames=row.frames,
        strides=1,
        crop=row.crop,
        null_text=NULL_TEXT,
        optimizer=row.optimizer,
        seed=0,
    )
    assert trained(found["image_upscaler"].players["denoiser"]) == trained(real.players[0].module)


def test_what_is_inherited_is_frozen_unless_the_row_trains_it():
    found = networks_of(TINY)
    temporal, interpolator = (
        found[name].players["denoiser"] for name in ("temporal", "interpolator")
    )
    assert not any(p.requires_grad for p in temporal.unet.parameters())
    assert all(p.requires_grad for p in interpolator.parameters())
    assert set(found["decoder"].players) == {"decoder", "critic"}
    assert [p.is_meta for n in found.values() for m in n.players.values() for p in m.parameters()]


def test_a_brought_model_gives_the_published_sizes_and_takes_no_memory(tmp_path):
    found = networks_of(brought(tmp_path))
    net = found["temporal"].players["denoiser"]
    assert count_parameters(net.temporal) == 656_076_838
    assert all(p.is_meta for p in net.parameters())
    assert isinstance(found["upscaler"], UserError)


def test_every_player_of_the_tiny_cascade_takes_a_step_on_shapes_alone():
    for stage, inherited, networks in table_on_meta(TINY):
        for module in networks.players.values():
            given = inputs_on_meta(module, stage, TINY.video, inherited, clips=2)
            taken = activation_bytes(module, given, _loss, in_bfloat16=False)
            assert taken > sum(t.numel() * 4 for t in given.values() if t.is_floating_point())


def _loss(out):
    return out[0].square().mean() if isinstance(out, tuple) else out.square().mean()


def test_labels_are_part_of_what_an_image_model_with_tokens_trains_and_is_given():
    driving = preset("driving")
    found = {stage.name: (stage, parts, nets) for stage, parts, nets in table_on_meta(driving)}
    stage, inherited, networks = found["image"]
    net = networks.players["denoiser"]
    given = inputs_on_meta(net, stage, driving.video, inherited, clips=2)
    assert given["labels"].shape == (2, len(driving.labels))
    assert all(p.requires_grad for p in net.tokens.parameters())
    inheriting = found["temporal"][2].players["denoiser"]
    assert not any(p.requires_grad for p in inheriting.tokens.parameters())


def row_of(memory, stage):
    return next(row for row in memory if row.stage == stage)


def tiny_with(stage, **changes):
    rows = [row.model_copy(update=changes) if row.name == stage else row for row in TINY.stages]
    return TINY.model_copy(update={"stages": tuple(rows)})


def test_a_critic_and_a_perceptual_error_are_counted_with_the_autoencoder():
    plain = row_of(expected_memory(TINY, processes=1, precision="fp32"), "autoencoder")
    objective = TINY.stage("autoencoder").objective.model_copy(
        update={
            "critic": CriticConfig(width=16),
            "perceptual": PerceptualConfig(backbone=Path("vgg"), heads=Path("lpips")),
        }
    )
    table = tiny_with("autoencoder", objective=objective)
    judged = row_of(expected_memory(table, processes=1, precision="fp32"), "autoencoder")
    assert judged.frozen == count_parameters(Perceptual()) > 14_000_000
    assert judged.trained > plain.trained
    assert judged.activations > plain.activations
    assert min(judged.state.values()) > judged.frozen * 4


def test_a_micro_batch_and_checkpointing_make_a_step_smaller():
    taken = [
        row_of(expected_memory(table, processes=1, precision="fp32"), "temporal").activations
        for table in (
            TINY,
            tiny_with("temporal", micro_batch=2),
            tiny_with("temporal", micro_batch=2, checkpointing=True),
        )
    ]
    assert taken[0] > 3 * taken[1] > 3 * taken[2]


def test_a_step_in_bfloat16_makes_no_copy_of_what_is_frozen():
    table = tiny_with("temporal", micro_batch=1)
    stage, parts, networks = next(row for row in table_on_meta(table) if row[0].name == "temporal")
    net = networks.players["denoiser"]
    for layer in net.unet.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.to(torch.bfloat16)
    given = inputs_on_meta(net, stage, table.video, parts, clips=1)
    expected = activation_bytes(net, given, lambda out: out.square().mean(), in_bfloat16=True)
    row = row_of(expected_memory(table, processes=1, precision="bf16"), "temporal")
    assert row.activations == pytest.approx(expected, abs=0.05 * row.frozen * 2)


def judging(name: str, table=TINY, precision: Literal["fp32", "bf16"] = "fp32") -> int:
    stage, parts = next((row, parts) for row, parts, _ in table_on_meta(table) if row.name == name)
    return judging_bytes(stage, parts, table, processes=1, precision=precision)


def test_judging_holds_networks_whole_and_sees_whole_frames():
    networks = networks_of(TINY)["upscaler"].players["denoiser"]
    channel = 5 * 160 * 256 * 4  # bytes of one channel of a whole clip
    taken = judging("upscaler")
    assert taken > count_parameters(networks) * 4 + 2 * 16 * channel
    assert judging("upscaler", tiny_with("upscaler", micro_batch=2)) == taken, "always one clip"
    assert judging("upscaler", precision="bf16") < taken


def test_a_micro_batch_makes_judging_smaller_too():
    small = tiny_with("predictor", micro_batch=1)
    assert judging("predictor", small) < 0.6 * judging("predictor")


def judging_a_dot(stage, **configs):
    """Bytes that judging one clip of 8 x 8 pixels takes, nearly all of them weights; the stage's
    networks; the configs of what it inherits, `configs` among them.
    """
    dot = TINY.video.model_copy(update={"height": 8, "width": 8})
    row = stage.model_copy(update={"micro_batch": 1})
    parts = next(parts for found, parts, _ in table_on_meta(TINY) if found.name == stage.name)
    parts = {**parts, **configs}
    table = TINY.model_copy(update={"video": dot})
    taken = judging_bytes(row, parts, table, processes=1, precision="fp32")
    return taken, networks_on_meta(row, parts), parts


def bytes_of(*modules) -> int:
    return 4 * sum(count_parameters(module) for module in modules)


def autoencoder_of(config):
    with torch.device("meta"):
        return AutoencoderKL.from_config(dict(config))


@pytest.mark.parametrize("name", ["image", "temporal", "interpolator", "decoder"])
def test_judging_holds_the_networks_and_the_whole_autoencoder_that_was_inherited(name):
    taken, networks, parts = judging_a_dot(TINY.stage(name))
    player = next(iter(networks.players.values()))
    held = bytes_of(player, *networks.beside, autoencoder_of(parts["vae"]))
    assert held < taken < held + A_PASS


def test_judging_holds_an_upscalers_own_autoencoder_once():
    config = networks_of(TINY)["autoencoder"].makes["vae"]
    taken, networks, _ = judging_a_dot(TINY.stage("upscaler"), own_vae=config)
    held = bytes_of(networks.players["denoiser"], autoencoder_of(config))
    assert held < taken < held + A_PASS


def test_judging_an_autoencoder_holds_neither_its_critic_nor_what_its_error_looked_through():
    perceptual = PerceptualConfig(backbone=Path("vgg"), heads=Path("lpips"))
    row = TINY.stage("autoencoder")
    changes = {"critic": CriticConfig(width=16), "perceptual": perceptual}
    objective = row.objective.model_copy(update=changes)
    taken, networks, _ = judging_a_dot(row.model_copy(update={"objective": objective}))
    held = bytes_of(networks.players["autoencoder"])
    assert held < taken < held + A_PASS


def test_a_latent_stage_sees_latents_and_a_patch_stage_its_patch():
    sizes = {}
    for stage, inherited, networks in table_on_meta(TINY):
        for name, module in networks.players.items():
            given = inputs_on_meta(module, stage, TINY.video, inherited, clips=3)
            sizes[stage.name, name] = {key: tuple(t.shape) for key, t in given.items()}
    assert sizes["temporal", "denoiser"]["noisy"] == (3, 5, 4, 10, 16)
    assert sizes["interpolator", "denoiser"]["context"] == (3, 5, 5, 10, 16)
    assert sizes["interpolator", "denoiser"]["label"] == (3,)
    assert sizes["upscaler", "denoiser"]["noisy"] == (3, 5, 6, 48, 48)
    assert sizes["upscaler", "denoiser"]["noise_level"] == (3,)
    assert sizes["decoder", "decoder"]["latents"] == (3, 5, 4, 10, 16)
    assert sizes["autoencoder", "autoencoder"]["frames"] == (3, 3, 40, 64)


def test_stages_whose_image_model_is_not_there_say_what_is_missing(tmp_path):
    rows = list(expected_memory(preset("text_to_video"), processes=8, precision="bf16"))
    assert [bool(row.unknown) for row in rows] == [True] * len(preset("text_to_video").stages)
    assert "pretrained.image_model" in rows[0].unknown
    table = brought(tmp_path)
    (tmp_path / "unet" / "config.json").write_text("[1, 2")
    row = next(expected_memory(table, processes=8, precision="bf16"))
    assert "Cannot read" in row.unknown
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"block_out_channels": "many"}))
    with pytest.raises(UserError, match="config of the unet"):
        networks_on_meta(table.stage("image"), {"unet": {"block_out_channels": "many"}})


def test_more_processes_take_less_each_and_the_row_counts_what_it_trains():
    rows = {
        count: {row.stage: row for row in expected_memory(TINY, processes=count, precision="fp32")}
        for count in (1, 4)
    }
    one, four = (rows[count]["interpolator"] for count in (1, 4))
    assert one.frozen == four.frozen == 0
    assert one.trained == four.trained > rows[1]["temporal"].trained
    assert four.state[0] == one.state[0]
    assert all(four.state[zero] < one.state[zero] for zero in (1, 2, 3))
    assert four.state[1] > four.state[2]
    assert four.activations < 0.5 * one.activations
