"""Pixel clips are near-lossless, exact by frame number, and their reader is honest about damage."""

import numpy as np
import pytest

from videoldm_core.data.pixels import FrameCache, decode_clip_frames, encode_clip
from videoldm_core.errors import ShardError


def _moving_scene(frames: int, height: int, width: int) -> np.ndarray:
    """Smooth colours, sharp edges and a little grain that move by two pixels a frame."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0 : width + 2 * frames] / 20
    wide = np.stack([np.sin(x + y), np.cos(x - 2 * y), np.sin(3 * x) * np.cos(y)], axis=-1)
    wide[height // 3 : height // 2, ::17] = 1
    grain = generator.normal(scale=2, size=(frames, height, width, 3))
    moving = np.stack([wide[:, 2 * t : 2 * t + width] for t in range(frames)])
    return np.clip(127.5 + 120 * moving + grain, 0, 255).round().astype(np.uint8)


def _psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def test_frames_come_back_near_lossless_and_without_a_colour_shift():
    frames = _moving_scene(12, 160, 256)
    again = decode_clip_frames(encode_clip(frames, fps=16), range(12), width_px=256)
    assert min(_psnr_db(a, b) for a, b in zip(again, frames, strict=True)) >= 42
    assert np.abs((again.astype(float) - frames).mean(axis=(0, 1, 2))).max() < 0.2


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (1, 128, 254)])
def test_pure_colours_survive(colour):
    frames = np.empty((2, 32, 64, 3), np.uint8)
    frames[:] = colour
    again = decode_clip_frames(encode_clip(frames, fps=16), [0, 1], width_px=64)
    assert np.abs(again.astype(int) - frames).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(40, 64), (32, 48), (24, 96), (33, 47), (18, 144)])
def test_every_frame_is_found_by_its_number_at_any_size(height: int, width: int):
    greys = (8 * np.arange(30)).astype(np.uint8)
    frames = np.broadcast_to(greys[:, None, None, None], (30, height, width, 3)).copy()
    wanted = [29, 0, 17, 17, 3]
    again = decode_clip_frames(encode_clip(frames, fps=7.5), wanted, width_px=width)
    assert again.shape == (5, height, width, 3)
    assert [round(frame.mean() / 8) for frame in again] == wanted


def test_equal_frames_give_equal_bytes():
    frames = _moving_scene(5, 48, 64)
    assert encode_clip(frames, fps=16) == encode_clip(frames.copy(), fps=16)


def test_damaged_bytes_and_missing_frames_are_named():
    video = encode_clip(_moving_scene(3, 32, 64), fps=16)
    with pytest.raises(ShardError, match="has 3 frames and frame 3 is wanted; delete the shard"):
        decode_clip_frames(video, [3], width_px=64)
    with pytest.raises(ShardError, match="cannot be decoded .*; delete the shard and run"):
        decode_clip_frames(bytes(1000), [0], width_px=64)


def test_cache_decodes_each_frame_once_and_stays_within_its_limit():
    asked = []

    def decode(frames):
        asked.append(list(frames))
        return {t: np.full((4, 4, 3), t, np.uint8) for t in frames}

    cache = FrameCache(48 * 4)
    assert cache.read("a", [3, 1, 3], decode)[:, 0, 0, 0].tolist() == [3, 1, 3]
    assert cache.read("a", [1, 2], decode)[:, 0, 0, 0].tolist() == [1, 2]
    assert asked == [[1, 3], [2]]
    cache.read("b", [0, 1], decode)  # evicts a/3, which was used least recently
    cache.read("a", [1, 2], decode)
    assert asked == [[1, 3], [2], [0, 1]]
    cache.read("a", [3], decode)
    assert asked[-1] == [3]
    assert cache.size_bytes == 48 * 4


def test_a_frame_larger_than_the_cache_is_still_read():
    cache = FrameCache(10)
    frames = cache.read("a", [0], lambda _: {0: np.ones((4, 4, 3), np.uint8)})
    assert frames.shape == (1, 4, 4, 3)
    assert cache.size_bytes == 0
