"""Fixtures of all tests: videos whose grey level tells the frame, image models small enough to run
in milliseconds, a whole release of them, and the outside test material.
"""

import json
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from videoldm_core.models.image import AutoencoderConfig, UNetConfig
from videoldm_core.models.text.encoder import CLIP_VOCABULARY, TextConfig, TextTower
from videoldm_core.objectives.denoising import ScheduleConfig

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"
GREY_START, GREY_STEP = 16, 6  # frame i is grey level 16 + 6 i: apart enough to survive H.264


@pytest.fixture
def asset() -> Callable[[str], Path]:
    """asset("videos/edge/x.mp4"): material beside the checkout; without it the test is skipped."""

    def find(name: str) -> Path:
        path = ASSETS / name
        if not path.exists():
            pytest.skip(
                f"the outside test material {name!r} is not beside this checkout ({ASSETS})"
            )
        return path

    return find


class Disk:
    """What would survive a loss of power: every sync, and every rename, in their order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Path]] = []

    def synced(self, path: Path, *, after: str | None = None) -> bool:
        """Whether `path` was waited for, after the last event of that kind."""
        kinds = [kind for kind, _ in self.events]
        first = len(kinds) - kinds[::-1].index(after) if after else 0
        return ("sync", path.resolve()) in self.events[first:]

    def unsafe(self) -> list[Path]:
        """Names given to what was not on the disk, or that were not there themselves."""
        return [
            path
            for place, (kind, path) in enumerate(self.events)
            if kind == "name"
            and not (
                self.events[:place].count(("sync", self.sources[path]))
                and ("sync", path.parent) in self.events[place:]
            )
        ]

    sources: dict[Path, Path]


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Watches the calls that decide what a loss of power leaves; they are made all the same."""
    watched, fsync, replace = Disk(), os.fsync, os.replace
    watched.sources = {}

    def sync(file: int) -> None:
        watched.events.append(("sync", Path(f"/proc/self/fd/{file}").resolve()))
        fsync(file)

    def rename(source: str | Path, target: str | Path) -> None:
        final = Path(target).resolve()
        watched.sources[final] = Path(source).resolve()
        watched.events.append(("name", final))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    return watched


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Computes as a process with OMP_NUM_THREADS=1 does: the threads decide how sums round."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def counting_video(tmp_path: Path) -> Callable[..., Path]:
    """counting_video("a.mp4", frames=36, fps=16, size=(64, 48)): frame i is grey level 16 + 6 i."""

    def make(
        name: str = "counting.mp4",
        *,
        frames: int = 36,
        fps: float = 16,
        size: tuple[int, int] = (64, 48),
        options: dict[str, str] | None = None,
        folder: Path | None = None,
    ) -> Path:
        assert frames <= 40, "more grey levels than H.264 keeps apart"
        path = (folder or tmp_path) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = size
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": "8", **(options or {})}
            for index in range(frames):
                grey = np.full((height, width, 3), GREY_START + GREY_STEP * index, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def counted() -> Callable[[np.ndarray], list[int]]:
    """Reads the frame numbers back from frames (t h w 3) of a counting video."""

    def read(frames: np.ndarray) -> list[int]:
        greys = frames.reshape(len(frames), -1).astype(float).mean(axis=1)
        return [round((grey - GREY_START) / GREY_STEP) for grey in greys]

    return read


def _in_transformers_layout(tower: TextTower) -> dict[str, Tensor]:
    """A tower's weights under the names that a text_encoder/ folder has."""
    plain = {"token_embedding": "embeddings.token_embedding", "ln_final": "final_layer_norm"}
    plain |= {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    plain |= {"c_fc": "fc1", "c_proj": "fc2", "transformer.resblocks": "encoder.layers"}
    named = {}
    for name, tensor in tower.transformer.state_dict().items():
        if name == "positional_embedding":
            named["embeddings.position_embedding.weight"] = tensor
        elif ".in_proj_" in name:
            layer, kind = name.split(".")[2], name.rsplit("_", 1)[1]
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                named[f"encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] = rows
        else:
            for ours, theirs in plain.items():
                name = name.replace(ours, theirs)
            named[name] = tensor
    return {f"text_model.{name}": tensor.contiguous() for name, tensor in named.items()}


def _write_text_encoder(folder: Path, tower: TextTower) -> None:
    """The text_encoder/ and tokenizer/ of a diffusers folder."""
    encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
    encoder.mkdir()
    tokenizer.mkdir()
    described = {
        "hidden_act": "gelu",
        "hidden_size": tower.config.width,
        "num_attention_heads": tower.config.heads,
        "num_hidden_layers": tower.config.layers,
        "max_position_embeddings": tower.config.context_length,
        "vocab_size": CLIP_VOCABULARY,
    }
    (encoder / "config.json").write_text(json.dumps(described))
    save_file(_in_transformers_layout(tower), encoder / "model.safetensors")
    (tokenizer / "special_tokens_map.json").write_text('{"pad_token": "!"}')


@pytest.fixture(scope="session")
def text_tower() -> TextTower:
    """The text tower of `stable_diffusion`."""
    return TextTower.build(TextConfig(context_length=8, width=32, heads=2, layers=2))


@pytest.fixture(scope="session")
def stable_diffusion(text_tower: TextTower, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder laid out as Stable Diffusion 2's, small and untrained."""
    folder = tmp_path_factory.mktemp("stable diffusion")
    UNetConfig(
        widths=(16, 32), attention=(True, True), layers_per_block=1, heads=2, text=32, groups=8
    ).build(0).save_pretrained(folder / "unet")
    vae = AutoencoderConfig(widths=(8, 8, 8, 16), layers_per_block=1, groups=4).build(0)
    vae.register_to_config(scaling_factor=0.18215)
    vae.save_pretrained(folder / "vae")
    ScheduleConfig(predicts="v_prediction").build().save(folder / "scheduler")
    _write_text_encoder(folder, text_tower)
    return folder


@pytest.fixture(scope="session")
def x4_upscaler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder laid out as the x4-upscaler's, small and untrained."""
    folder = tmp_path_factory.mktemp("x4 upscaler")
    UNetConfig(
        in_channels=7,
        widths=(16, 32),
        attention=(False, True),
        layers_per_block=1,
        heads=2,
        text=48,  # another tower's than that of `stable_diffusion`
        groups=8,
        told_noise_level=True,
    ).build(0).save_pretrained(folder / "unet")
    vae = AutoencoderConfig(widths=(8, 8, 16), layers_per_block=1, groups=4).build(0)
    vae.register_to_config(scaling_factor=0.08333)
    vae.save_pretrained(folder / "vae")
    for name, predicts in (("scheduler", "v_prediction"), ("low_res_scheduler", "epsilon")):
        schedule = ScheduleConfig(predicts=predicts, beta_start=1e-4, beta_end=0.02)
        schedule.build().save(folder / name)
    tower = TextTower.build(TextConfig(context_length=8, width=48, heads=2, layers=2))
    _write_text_encoder(folder, tower)
    return folder


@pytest.fixture(scope="session")
def small_unet() -> UNetConfig:
    """Two levels, both with attention."""
    return UNetConfig(
        widths=(16, 32), attention=(True, True), layers_per_block=1, heads=2, text=8, groups=8
    )


@pytest.fixture(scope="session")
def image_model(small_unet: UNetConfig, tmp_path_factory: pytest.TempPathFactory):
    """Parts of an image model on disk: unet, scheduler, and vae that halves height and width."""
    folder = tmp_path_factory.mktemp("image model")
    parts: dict[str, Path] = {name: folder / name for name in ("unet", "scheduler", "vae")}
    small_unet.build(0).save_pretrained(parts["unet"])
    ScheduleConfig(predicts="v_prediction").build().save(parts["scheduler"])
    AutoencoderConfig(widths=(8, 16), layers_per_block=1, groups=4).build(0).save_pretrained(
        parts["vae"]
    )
    return parts


@pytest.fixture(scope="session")
def released(image_model: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """Folders of untrained stages by name, and of a text tower; see releases.py."""
    from tests.videoldm_core.releases import publish_all

    return publish_all(tmp_path_factory.mktemp("released"), image_model)
