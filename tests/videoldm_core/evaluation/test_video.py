"""Proofs of the video stages: same clips and noise on both sides, and baselines computed right."""

from pathlib import Path

import pytest
import torch

from videoldm_core.data.loader import Batch
from videoldm_core.diffusion.conditioning import (
    AnyGiven,
    FirstFrames,
    KeyFrames,
    LowResolution,
    Nothing,
)
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.evaluation import video as video_proofs
from videoldm_core.evaluation.comparison import summary
from videoldm_core.evaluation.comparisons import AnyProof
from videoldm_core.evaluation.measuring import SEEDS, Evidence
from videoldm_core.evaluation.video import (
    BeatsImageModel,
    SteadierDecoding,
    SteadierUpscaling,
    UsesFirstFrames,
    UsesKeyFrames,
)
from videoldm_core.models.image import UNetConfig, latent_scale, load_unet, load_vae
from videoldm_core.models.temporal_layers import TemporalConfig
from videoldm_core.models.video_decoder import temporal_decoder_for
from videoldm_core.models.video_unet import temporal_layers_for
from videoldm_core.objectives.denoising import ScheduleConfig

NOTHING = Nothing()


def with_temporal(
    image_model: dict[str, Path],
    folder: Path,
    *,
    context: int = 0,
    labels: int = 0,
    learned: bool = False,
) -> dict[str, Path]:
    """The parts of a video model; `learned`: its layers do something."""
    config = TemporalConfig(context_channels=context, labels=labels)
    layers = temporal_layers_for(load_unet(image_model["unet"]), config, seed=0)
    if learned:
        generator = torch.Generator().manual_seed(1)
        for parameter in layers.parameters():
            parameter.data.normal_(0, 0.2, generator=generator)
    layers.save(folder)
    return image_model | {"temporal": folder}


def evidence_of(parts: dict[str, Path], batch: Batch, given: AnyGiven = NOTHING) -> Evidence:
    return Evidence(parts=parts, inherited=parts, given=given, heldout=[batch], training=lambda: [])


def means(series: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: summary(values)[0] for name, values in series.items()}


@pytest.mark.parametrize(
    ("proof", "given", "context", "labels"),
    [
        (BeatsImageModel(), NOTHING, 0, 0),
        (UsesFirstFrames(), FirstFrames(), 5, 0),
        (UsesKeyFrames(), KeyFrames(), 5, 2),
    ],
)
@torch.no_grad()
def test_layers_that_learned_nothing_are_as_good_as_what_they_must_beat(
    proof: AnyProof, given, context, labels, image_model, random_batch, tmp_path
):
    parts = with_temporal(image_model, tmp_path, context=context, labels=labels)
    found = means(proof.measure(evidence_of(parts, random_batch((2, 5, 4, 8, 8)), given)))
    for claim in proof.claims:
        for other in claim.beats:
            if other != "nearest key latent":
                assert found[claim.value] == pytest.approx(found[other], rel=1e-4)


@torch.no_grad()
def test_the_key_frame_model_is_compared_with_the_image_model_alone(
    image_model, random_batch, tmp_path
):
    batch = random_batch((2, 5, 4, 8, 8))
    new = BeatsImageModel().measure(
        evidence_of(with_temporal(image_model, tmp_path / "new"), batch)
    )
    learned = BeatsImageModel().measure(
        evidence_of(with_temporal(image_model, tmp_path / "learned", learned=True), batch)
    )
    image = "image model (alpha = 1)"
    assert torch.equal(new[image], learned[image])
    assert not torch.allclose(learned["with temporal layers"], learned[image], rtol=1e-2)


@torch.no_grad()
def test_the_predictor_is_told_0_1_and_2_frames_and_judged_on_the_others(
    image_model, random_batch, tmp_path, monkeypatch
):
    counts = []

    def predict(net, noisy, timesteps, text, given):
        counts.append(given.known.sum(dim=1).tolist())
        right = torch.zeros_like(noisy)
        right[:, :2] = 1e6  # far off where a frame may be given
        return right

    monkeypatch.setattr(video_proofs, "predict", predict)
    parts = with_temporal(image_model, tmp_path, context=5)
    series = UsesFirstFrames().measure(evidence_of(parts, random_batch((2, 5, 4, 8, 8))))
    assert counts[:3] == [[0, 0], [1, 1], [2, 2]]
    assert list(series) == ["masked", "1 frame", "2 frames"]
    for values in series.values():
        assert values.shape == (len(SEEDS), 2)
        assert values.max() < 10


def straight(batch: Batch) -> Batch:
    """Latents that move by the same amount from frame to frame."""
    time = torch.arange(5.0).view(1, 5, 1, 1, 1)
    clip = batch.clip[:, :1] + time * batch.clip[:, 1:2]
    return Batch(
        clip=clip, text=batch.text, stride_index=batch.stride_index, sample_ids=batch.sample_ids
    )


@torch.no_grad()
def test_interpolation_is_compared_with_lines_and_with_the_nearest_key(
    image_model, random_batch, tmp_path
):
    parts = with_temporal(image_model, tmp_path, context=5, labels=2)
    batch = straight(random_batch((2, 5, 4, 8, 8)))
    series = UsesKeyFrames().measure(evidence_of(parts, batch, KeyFrames()))
    assert series["linear interpolation"].abs().max() < 1e-8
    # Frames 1, 2, 3 take frames 0, 0 (or 4, as far) and 4: distances 1, 2, 1.
    scale = latent_scale(image_model["vae"])
    pace = (batch.clip[:, 1] - batch.clip[:, 0]).mul(scale).square().flatten(1).mean(dim=1)
    alone = pace * (1 + 4 + 1) / 3
    # A little of the frames is left at the last level of this schedule, and takes a little off.
    signal = NoiseSchedule.load(image_model["scheduler"]).alpha(torch.tensor([999])).item() ** 2
    expected = alone * (1 - signal) / (signal * alone + 1 - signal)
    assert torch.allclose(series["nearest key latent"], expected.expand(len(SEEDS), -1), rtol=1e-4)


@torch.no_grad()
def test_the_interpolators_context_makes_the_difference(image_model, random_batch, tmp_path):
    parts = with_temporal(image_model, tmp_path, context=5, labels=2, learned=True)
    evidence = evidence_of(parts, random_batch((2, 5, 4, 8, 8)), KeyFrames())
    series = UsesKeyFrames().measure(evidence)
    assert not torch.allclose(series["interpolator"], series["masked"], rtol=1e-2)


@torch.no_grad()
def test_a_new_video_decoder_is_the_image_decoder_and_is_not_steadier(
    image_model, random_batch, tmp_path
):
    vae = load_vae(image_model["vae"])
    temporal_decoder_for(vae, seed=0).save(tmp_path)
    parts = image_model | {"temporal_decoder": tmp_path}
    proof = SteadierDecoding()
    series = proof.measure(evidence_of(parts, random_batch((2, 4, 3, 16, 16))))
    found = means(series)
    for metric in ("flicker", "PSNR"):
        same = pytest.approx(found[f"image decoder, {metric}"], rel=1e-4)
        assert found[f"video decoder, {metric}"] == same
    by_metric = {claim.metric: claim.judge("decoder", series) for claim in proof.claims}
    assert by_metric["PSNR"].passed  # within the slack


@torch.no_grad()
def test_the_image_decoder_is_the_inherited_one(image_model, random_batch, tmp_path):
    """A decoder that was tuned into nonsense is judged against what it started from."""
    tuned = load_vae(image_model["vae"])
    torch.nn.init.zeros_(tuned.decoder.conv_out.weight)
    tuned.save_pretrained(tmp_path / "vae")
    temporal_decoder_for(tuned, seed=0).save(tmp_path / "temporal_decoder")
    parts = image_model | {n: tmp_path / n for n in ("vae", "temporal_decoder")}
    batch = random_batch((1, 4, 3, 16, 16))
    series = SteadierDecoding().measure(
        Evidence(parts=parts, inherited=image_model, heldout=[batch], training=lambda: [])
    )
    untouched = load_vae(image_model["vae"])
    frames = batch.clip[0]
    decoded = untouched.decode(untouched.encode(frames).latent_dist.mean).sample
    error = (decoded.clamp(-1, 1).diff(dim=0) - frames.diff(dim=0)) * 127.5
    expected = error.square().mean().sqrt().item()
    assert series["image decoder, flicker"].item() == pytest.approx(expected, rel=1e-4)
    assert series["video decoder, flicker"].item() != pytest.approx(expected, rel=1e-3)


@pytest.fixture
def image_upscaler(tmp_path) -> dict[str, Path]:
    """The parts of an image upscaler."""
    unet = UNetConfig(
        in_channels=6,
        out_channels=3,
        widths=(16, 32),
        attention=(False, False),
        layers_per_block=1,
        text=8,
        groups=8,
        told_noise_level=True,
    )
    unet.build(0).save_pretrained(tmp_path / "unet")
    ScheduleConfig(predicts="v_prediction").build().save(tmp_path / "scheduler")
    return {name: tmp_path / name for name in ("unet", "scheduler")}


@torch.no_grad()
def test_a_new_video_upscaler_is_the_image_upscaler(image_upscaler, random_batch, tmp_path):
    parts = with_temporal(image_upscaler, tmp_path / "temporal")
    given = LowResolution(factor=4, detail_scale=8.0)
    evidence = evidence_of(parts, random_batch((1, 3, 3, 16, 16)), given)
    found = means(SteadierUpscaling().measure(evidence))
    for metric in ("flicker", "PSNR"):
        same = pytest.approx(found[f"image upscaler, {metric}"], rel=1e-4)
        assert found[f"video upscaler, {metric}"] == same


@torch.no_grad()
def test_a_video_upscaler_is_compared_with_the_image_upscaler_alone(
    image_upscaler, random_batch, tmp_path
):
    batch, given, found = random_batch((1, 3, 3, 16, 16)), LowResolution(factor=4), {}
    for learned in (False, True):
        parts = with_temporal(image_upscaler, tmp_path / f"{learned}", learned=learned)
        found[learned] = SteadierUpscaling().measure(evidence_of(parts, batch, given))
    for metric in ("flicker", "PSNR"):
        image, video = f"image upscaler, {metric}", f"video upscaler, {metric}"
        assert torch.equal(found[False][image], found[True][image])
        assert not torch.allclose(found[True][video], found[True][image], rtol=1e-3)
