"""Videos become pixel and latent stores; a broken one costs its clips only."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from preprocessing.admission.clips import Clip
from preprocessing.encoding.stores import StoreRequest, encode_latents, encode_pixels
from preprocessing.sources.unchanged import CHANGED
from videoldm_core.cascade.stage import VideoFormat
from videoldm_core.data.storage import open_storage
from videoldm_core.data.store import open_store
from videoldm_core.errors import UserError
from videoldm_core.system.files import sha256_of_file

VIDEO = VideoFormat(fps=8, height=16, width=24, upscale=2, clip_seconds=2)


class CountingText:
    """A text tower that knows how many letters a caption has."""

    asked: list[str]

    def __init__(self):
        self.asked = []

    def encode(self, captions):
        self.asked += captions
        return torch.tensor([[[len(caption), 0.5]] * 3 for caption in captions]).float()

    def digest(self) -> str:
        return "letters"


@pytest.fixture
def vae_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=2,
    )
    vae.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.fixture
def request_for(tmp_path: Path, counting_video):
    """Two good videos of 36 frames at 16/s, 48x32, and one that is text; two clips of each."""
    good = counting_video("good.mp4", frames=36, fps=16, size=(48, 32))
    (good.parent / "other.mp4").write_bytes(good.read_bytes())
    (good.parent / "bad.mp4").write_text("not a video at all\n" * 99)

    def make(*sources: str, **options) -> StoreRequest:
        clips = [
            Clip(
                key=hashlib.sha256(f"{source} {start_s}".encode()).hexdigest()[:16],
                source=source,
                source_digest=digest_of(good.parent / source),
                start_s=start_s,
                fps=8,
                frames=8,
                caption=f"from {source}",
                split="train",
            )
            for source in sources
            for start_s in (0.0, 1.0)
        ]
        return StoreRequest(
            clips=clips,
            folder_of_videos=good.parent,
            out=tmp_path / "out",
            video=VIDEO,
            text=CountingText(),
            clips_per_shard=3,
            **options,
        )

    return make


def digest_of(video: Path) -> str:
    return sha256_of_file(video) if video.exists() else "f" * 64


def _greys(frames: torch.Tensor) -> list[int]:
    """Source frame numbers of frames of the counting video (grey 16 + 6 i)."""
    return [round((frame.float().mean().item() - 16) / 6) for frame in frames]


def test_pixel_store_holds_the_frames_of_their_times_at_full_size(request_for):
    reports = []
    request = request_for("good.mp4", "other.mp4", progress=lambda *counts: reports.append(counts))
    location = encode_pixels(request)
    store = open_store(location)
    store.verify()
    assert [s.key for s in store.samples] == [c.key for c in request.clips]
    for sample in store.samples:
        frames = store.read_frames(sample, range(8))
        assert frames.shape == (8, 32, 48, 3)
        assert _greys(frames) == [round(16 * sample.start_s) + 2 * t for t in range(8)]
    assert store.read_text(store.samples[0]).tolist() == [[13.0, 0.5]] * 3
    assert request.text.asked == ["from good.mp4", "from other.mp4"]
    assert reports == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert Path(location).parent.name == "pixels"
    assert Path(location).name == store.identity.digest()[:12]


def test_latent_store_holds_the_base_size_frames_encoded(request_for, vae_folder):
    location = encode_latents(request_for("good.mp4"), vae_folder=vae_folder)
    store = open_store(location)
    latents = store.read_latents(store.samples[1], [0, 7])
    assert latents.shape == (2, 4, 8, 12)
    grey = torch.full((1, 3, 16, 24), (16 + 6 * 16) / 127.5 - 1)
    vae = AutoencoderKL.from_pretrained(vae_folder)
    with torch.no_grad():
        expected = vae.encode(grey).latent_dist.mean[0]  # type: ignore[union-attr]
    assert (latents[0] - expected).abs().max() < 0.05
    assert not torch.equal(latents[0], latents[1])


def test_a_broken_video_costs_only_its_own_clips(request_for):
    location = Path(encode_pixels(request_for("good.mp4", "bad.mp4", "missing.mp4")))
    assert {s.source for s in open_store(location).samples} == {"good.mp4"}
    quarantine = json.loads((location / "quarantine.json").read_text())
    assert [clip["source"] for clip in quarantine] == ["bad.mp4"] * 2 + ["missing.mp4"] * 2
    assert "not a video: it is a text file" in quarantine[0]["reason"]


def test_a_video_that_changed_after_it_was_admitted_is_set_aside_and_not_encoded(
    request_for, counting_video
):
    request = request_for("good.mp4", "other.mp4")
    counting_video("other.mp4", frames=30, fps=16, size=(48, 32))  # sound, and another
    location = Path(encode_pixels(request))
    assert {s.source for s in open_store(location).samples} == {"good.mp4"}
    quarantine = json.loads((location / "quarantine.json").read_text())
    assert [(clip["source"], clip["reason"]) for clip in quarantine] == [("other.mp4", CHANGED)] * 2


def test_a_video_that_was_only_copied_anew_is_encoded(request_for):
    request = request_for("good.mp4")
    video = request.folder_of_videos / "good.mp4"
    content = video.read_bytes()
    video.unlink()
    video.write_bytes(content)
    assert len(open_store(encode_pixels(request)).samples) == 2


def test_only_broken_videos_make_no_store(request_for):
    with pytest.raises(UserError, match="None of 2 clips could be encoded; .*'bad.mp4': not a vid"):
        encode_pixels(request_for("bad.mp4"))
    with pytest.raises(UserError, match="There are 0 clips to encode"):
        encode_pixels(request_for())


def test_repeating_decodes_nothing_and_more_videos_decode_only_those(request_for, monkeypatch):
    location = Path(encode_pixels(request_for("good.mp4")))
    before = {path.name: path.read_bytes() for path in location.iterdir()}
    monkeypatch.setattr("preprocessing.encoding.stores.Workers.run", None)
    assert encode_pixels(request_for("good.mp4")) == location
    assert {path.name: path.read_bytes() for path in location.iterdir()} == before
    monkeypatch.undo()
    more = request_for("good.mp4", "other.mp4")
    assert encode_pixels(more) == location
    assert more.text.asked == ["from other.mp4"]
    assert len(open_store(location).samples) == 4


def test_other_weights_size_or_text_are_another_store(request_for, vae_folder):
    request = request_for("good.mp4")
    locations = {encode_latents(request, vae_folder=vae_folder)}
    vae = AutoencoderKL.from_pretrained(vae_folder)
    with torch.no_grad():
        next(vae.parameters()).add_(1)
    vae.save_pretrained(vae_folder)
    locations.add(encode_latents(request, vae_folder=vae_folder))
    smaller = request_for("good.mp4")
    object.__setattr__(smaller, "video", VIDEO.model_copy(update={"height": 8}))
    locations.add(encode_latents(smaller, vae_folder=vae_folder))
    other_text = request_for("good.mp4")
    other_text.text.digest = lambda: "words"
    locations.add(encode_latents(other_text, vae_folder=vae_folder))
    assert len(locations) == 4


def test_stores_can_be_made_on_s3(request_for, tmp_path, s3_location):
    local = Path(encode_pixels(request_for("good.mp4")))
    request = request_for("good.mp4")
    object.__setattr__(request, "out", s3_location)
    location = encode_pixels(request)
    assert str(location) == f"{s3_location}/pixels/{local.name}"
    storage = open_storage(location)
    for name in storage.list():
        assert storage.read_bytes(name) == (local / name).read_bytes(), name
    store = open_store(location, cache=tmp_path / "cache")
    frames = store.read_frames(store.samples[0], [3])
    assert np.array_equal(frames, open_store(local).read_frames(store.samples[0], [3]))


@pytest.fixture
def s3_location(monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="stores")
    yield "s3://stores/run"
    server.stop()
