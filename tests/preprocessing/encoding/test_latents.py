"""Frames become unscaled posterior means, the same bits every time; bad folders are named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DModel

from preprocessing.encoding.latents import encode_frames, encode_side_by_side
from videoldm_core.errors import UserError
from videoldm_core.models.frozen_encoder import load_frozen_encoder


def _autoencoder(seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=3,
        scaling_factor=0.5,
    )


def _frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 24, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _autoencoder().save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_latents_are_the_unscaled_posterior_mean(folder: Path):
    frames = _frames(5)
    latents = encode_frames(load_frozen_encoder(folder), frames)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = _autoencoder().eval().encode(pixels).latent_dist.mean  # type: ignore[union-attr]
    assert (latents.dtype, latents.shape) == (np.float16, (5, 3, 8, 12))
    np.testing.assert_allclose(latents, expected.numpy(), atol=2e-3)


def test_the_same_clip_gives_the_same_bits(folder: Path):
    vae = load_frozen_encoder(folder)
    frames = _frames(9)
    first = encode_frames(vae, frames, batch=4)
    assert first.tobytes() == encode_frames(vae, frames, batch=4).tobytes()
    assert first.tobytes() == encode_frames(load_frozen_encoder(folder), frames, batch=4).tobytes()


def test_clips_encoded_side_by_side_come_in_order_with_the_same_bits_on_any_number_of_cores(
    folder: Path, monkeypatch
):
    vae = load_frozen_encoder(folder)
    clips = [_frames(count) for count in (9, 1, 4, 2, 7)]
    threads = torch.get_num_threads()
    side_by_side = [latents.tobytes() for latents in encode_side_by_side(vae, clips)]
    monkeypatch.setattr("preprocessing.encoding.latents.usable_cores", lambda: 1)
    assert side_by_side == [latents.tobytes() for latents in encode_side_by_side(vae, clips)]
    assert [len(latents) for latents in encode_side_by_side(vae, clips)] == [9, 1, 4, 2, 7]
    assert torch.get_num_threads() == threads


def test_bfloat16_is_close_and_only_on_request(folder: Path):
    vae = load_frozen_encoder(folder)
    full, half = encode_frames(vae, _frames(2)), encode_frames(vae, _frames(2), in_bfloat16=True)
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(full, half, atol=0.1)


def test_the_encoder_is_frozen(folder: Path):
    vae = load_frozen_encoder(folder)
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_a_tiny_autoencoder_is_a_drop_in(tmp_path: Path):
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path)
    latents = encode_frames(load_frozen_encoder(tmp_path), _frames(2))
    assert latents.shape == (2, 4, 8, 12)


def test_a_folder_without_an_autoencoder_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"Cannot read '.*nowhere/config\.json'.*expected"):
        load_frozen_encoder(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": UNet2DModel.__name__}))
    with pytest.raises(UserError, match="holds 'UNet2DModel', expected AutoencoderKL or Auto"):
        load_frozen_encoder(tmp_path)


def test_truncated_weights_are_named(folder: Path):
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=f"Cannot read '.*{weights.name}'"):
        load_frozen_encoder(folder)


def test_latents_that_float16_cannot_hold_are_refused(folder: Path):
    vae = load_frozen_encoder(folder)
    with torch.no_grad():
        vae.quant_conv.bias.fill_(1e6)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="latents that are infinite or not a number; its weights"):
        encode_frames(vae, _frames(1))
