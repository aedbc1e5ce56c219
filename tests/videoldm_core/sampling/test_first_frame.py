"""A picture as first frame: cut to size, encoded as stored latents are; bad files in a sentence."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from videoldm_core.errors import UserError
from videoldm_core.models.image import load_vae
from videoldm_core.sampling import first_frame
from videoldm_core.sampling.first_frame import encode_picture, read_picture


def saved(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def halves(height: int, width: int) -> np.ndarray:
    """Black in its left half, white in its right one."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, width // 2 :] = 255
    return pixels


@pytest.mark.parametrize("size", [(16, 24), (32, 48), (16, 90), (100, 24), (5, 7)])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_picture_covers_the_frame_and_is_cut_about_its_middle(tmp_path: Path, size, kind):
    picture = read_picture(saved(tmp_path / f"x.{kind}", halves(*size)), 16, 24)
    assert picture.shape == (3, 16, 24)
    assert picture.dtype == torch.float32
    assert picture[:, :, :6].mean() < -0.8
    assert picture[:, :, -6:].mean() > 0.8
    assert picture.abs().max() <= 1


def test_a_picture_of_the_right_size_is_kept_to_the_level(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    picture = read_picture(saved(tmp_path / "x.png", pixels), 16, 24)
    assert np.array_equal(((picture + 1) * 127.5).round().permute(1, 2, 0).numpy(), pixels)


def test_grey_transparent_and_turned_pictures_are_read(tmp_path: Path):
    grey = read_picture(saved(tmp_path / "g.png", np.full((8, 8), 255, np.uint8)), 8, 8)
    assert (grey == 1).all()
    clear = np.full((8, 8, 4), 255, np.uint8)
    assert (read_picture(saved(tmp_path / "a.png", clear), 8, 8) == 1).all()
    exif = Image.Exif()
    exif[0x0112] = 3  # lies on its head
    turned = read_picture(saved(tmp_path / "t.jpg", halves(16, 24), exif=exif), 16, 24)
    assert turned[:, :, :6].mean() > 0.8


def test_it_is_encoded_as_stored_latents_are(image_model):
    vae = load_vae(image_model["vae"])
    picture = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = encode_picture(picture, vae, scale=0.25)
    assert latent.shape == (1, 4, 8, 12)
    with torch.no_grad():
        expected = vae.encode(picture[None]).latent_dist.mean
    assert torch.equal(latent, expected * 0.25)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_a_picture_too_large_is_refused_by_its_header(tmp_path: Path):
    path = tmp_path / "bomb.png"
    for side in (9_000, 12_000, 60_000):
        path.write_bytes(png_header(side, side))
        with pytest.raises(UserError, match=r"first frame '.*bomb\.png'") as error:
            read_picture(path, 16, 24)
        assert "\n" not in str(error.value)


def test_the_largest_picture_is_stated(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(first_frame, "LARGEST_PX", 1000)
    path = saved(tmp_path / "x.png", halves(40, 50))
    with pytest.raises(UserError, match="50x40 px, more than 0 million; make it smaller"):
        read_picture(path, 16, 24)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", b"GIF89a" + bytes(40), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"],
)
def test_a_file_that_is_no_picture_is_one_sentence(tmp_path: Path, content: bytes):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"Cannot read the first frame '.*x\.png'") as error:
        read_picture(path, 16, 24)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_every_damaged_picture_is_one_sentence_or_a_picture(tmp_path: Path, kind: str):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    whole = saved(tmp_path / f"x.{kind}", pixels).read_bytes()
    rng, path, refused = np.random.default_rng(1), tmp_path / f"y.{kind}", []
    for _ in range(150):
        damaged = bytearray(whole[: rng.integers(8, len(whole) + 1)])
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged))
        try:
            assert read_picture(path, 16, 24).shape == (3, 16, 24)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert not [sentence for sentence in refused if "\n" in sentence]


def test_a_missing_file_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"Cannot read the first frame '.*' \(No such file"):
        read_picture(tmp_path / "none.png", 16, 24)
