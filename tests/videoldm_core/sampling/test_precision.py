"""Sampling in bfloat16: under autocast, with weights held as it rounds them."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from tests.videoldm_core.releases import TINY, publish, request_for
from videoldm_core.cascade.annotations import LabelKind, Vocabulary
from videoldm_core.generate import generate, load_models, make
from videoldm_core.jobs.published import part_paths
from videoldm_core.models.condition_tokens import condition_tokens_for
from videoldm_core.models.denoiser import Denoiser
from videoldm_core.models.image import AutoencoderConfig, load_unet
from videoldm_core.models.weights import hold_frozen_in_bf16
from videoldm_core.sampling import loading
from videoldm_core.sampling.clip_sampler import Drawing
from videoldm_core.sampling.loading import load_cascade, read_release

CPU = torch.device("cpu")


def test_bf16_runs_networks_under_autocast(released, tmp_path: Path, monkeypatch):
    on = []
    draw = Drawing.__call__

    def watched(self, role, noise, given, **options):
        def note(module, arguments):
            on.append(torch.is_autocast_enabled("cpu"))

        hook = role.denoiser.net.register_forward_pre_hook(note)
        made = draw(self, role, noise, given, **options)
        hook.remove()
        assert made.dtype == torch.float32
        return made

    monkeypatch.setattr(Drawing, "__call__", watched)
    generate(request_for(released, tmp_path / "v.mp4", precision="bf16"))
    assert on
    assert all(on)


def types_of(module: nn.Module) -> dict[str, torch.dtype]:
    return {name: p.dtype for name, p in module.named_parameters()}


def test_weights_held_in_bfloat16_make_the_same_video_to_the_bit(
    released, tmp_path: Path, monkeypatch
):
    sampling = {"steps": 2, "interpolation_steps": 1, "upscale_steps": 2}
    options = {"precision": "bf16", "sampling": sampling}
    generate(request_for(released, tmp_path / "held.mp4", **options))
    with monkeypatch.context() as patch:
        patch.setattr(loading, "hold_frozen_in_bf16", lambda network: None)
        generate(request_for(released, tmp_path / "cast.mp4", **options))
    assert (tmp_path / "held.mp4").read_bytes() == (tmp_path / "cast.mp4").read_bytes()


def test_a_latent_upscalers_own_autoencoder_decodes_the_same_bits(own_vae: AutoencoderKL):
    model = Denoiser(None, None, 0.5, own_vae)  # type: ignore[arg-type]
    latents = torch.randn(1, 2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        cast = model.clip_of(latents)
        hold_frozen_in_bf16(own_vae)
        assert torch.equal(model.clip_of(latents), cast)


@pytest.fixture
def own_vae() -> AutoencoderKL:
    vae = AutoencoderConfig(widths=(8, 8, 8), layers_per_block=1, groups=4).build(0)
    return vae.eval().requires_grad_(False)


@pytest.fixture
def wordy(released, tmp_path: Path) -> dict[str, Path]:
    """The same release, whose first frame's model is told labels."""
    old = released["text_tower"].parent
    root = shutil.copytree(old, tmp_path / "wordy")
    copies = {name: root / path.relative_to(old) for name, path in released.items()}
    parts = part_paths(copies["image"])
    words = Vocabulary(labels=(LabelKind(name="time", values=("day", "night")),))
    folder = copies["image"] / "weights" / "tokens"
    condition_tokens_for(load_unet(parts["unet"]), words, seed=0).save(folder)
    publish(copies["image"], TINY.stage("image"), parts | {"tokens": folder})
    return copies


def test_networks_are_held_in_bfloat16_but_for_norms_and_tokens(wordy):
    release = read_release(TINY.roles, wordy)
    cascade = load_cascade(release, CPU, precision="bf16")
    assert cascade.first_frame is not None
    assert cascade.key_frames.denoiser.net.temporal is not None
    unet = types_of(cascade.first_frame.denoiser.net.unet)
    assert unet["conv_in.weight"] == unet["time_embedding.linear_1.bias"] == torch.bfloat16
    assert unet["conv_norm_out.weight"] == torch.float32
    assert torch.bfloat16 in types_of(cascade.key_frames.denoiser.net.temporal).values()
    assert torch.bfloat16 in types_of(cascade.decoder.decoder).values()
    assert torch.bfloat16 in types_of(cascade.decoder.temporal).values()
    tokens = cascade.first_frame.denoiser.tokens
    assert tokens is not None
    assert set(types_of(tokens).values()) == {torch.float32}
    plain = load_cascade(release, CPU)
    assert set(types_of(plain.key_frames.denoiser.net.unet).values()) == {torch.float32}


def test_models_make_requests_of_their_own_precision_alone(released, tmp_path: Path):
    models = load_models(request_for(released, tmp_path / "a.mp4", precision="bf16"))
    with pytest.raises(AssertionError, match="loaded for bf16"):
        make(request_for(released, tmp_path / "a.mp4", precision="fp32"), models)
