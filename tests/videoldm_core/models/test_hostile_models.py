"""A model that somebody else made is refused in a sentence before it takes memory or hours."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from videoldm_core.cascade.annotations import Vocabulary
from videoldm_core.diffusion.schedule import NoiseSchedule
from videoldm_core.errors import UserError
from videoldm_core.models.condition_tokens import condition_tokens_for
from videoldm_core.models.image import latent_scale, load_unet
from videoldm_core.models.pretrained.stable_diffusion import load_image_model, load_text_tower
from videoldm_core.models.temporal_layers import load_temporal_config
from videoldm_core.models.text.encoder import TextConfig, TextTower
from videoldm_core.models.weights import read_checkpoint
from videoldm_core.objectives.denoising import ScheduleConfig

from ..single_files import write_single_file

ROOT = Path(__file__).resolve().parents[3]
DEEP = '{"a":' * 100_000

# Loads every folder that is named, with little more memory than Python and its libraries take.
LOAD = """
import resource, sys
from pathlib import Path
from videoldm_core.errors import UserError
from videoldm_core.models.condition_tokens import load_tokens
from videoldm_core.models.image import load_unet, load_vae
from videoldm_core.models.pretrained.stable_diffusion import load_image_model, load_text_tower
from videoldm_core.models.text.encoder import TextTower
unet = load_unet(Path(sys.argv[1]) / "unet")
load_vae(Path(sys.argv[1]) / "vae")
LOADERS = {"image": load_image_model, "text": load_text_tower, "tower": TextTower.load,
           "tokens": lambda path: load_tokens(path, unet)}
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + (700 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for line in sys.argv[2:]:
    kind, path = line.split(":", 1)
    try:
        LOADERS[kind](Path(path))
        print("taken", line)
    except UserError as error:
        print("refused:", error)
"""


@pytest.fixture
def model(stable_diffusion: Path, tmp_path: Path) -> Callable[..., Path]:
    """model("unet", layers_per_block=3): Stable Diffusion with a changed config.json."""

    def make(part: str = "", name: str = "model", **changes) -> Path:
        folder = tmp_path / name
        for path in stable_diffusion.rglob("*"):
            if path.is_file():
                (folder / path.relative_to(stable_diffusion)).parent.mkdir(
                    parents=True, exist_ok=True
                )
                os.link(path, folder / path.relative_to(stable_diffusion))
        if part:
            file = "scheduler_config.json" if part == "scheduler" else "config.json"
            config = folder / part / file
            values = json.loads(config.read_text()) | changes
            config.unlink()
            config.write_text(json.dumps(values))
        return folder

    return make


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("unet", {"layers_per_block": 10**6}, r"layers_per_block\S* = 1000000"),
        ("unet", {"layers_per_block": 999}, "a network of 1998 blocks, expected at most 1000"),
        ("unet", {"layers_per_block": 1, "transformer_layers_per_block": 800}, "of 1600 blocks"),
        ("unet", {"layers_per_block": [999, 999]}, "a network of 1998 blocks"),
        (
            "unet",
            {"transformer_layers_per_block": 10**7},
            r"transformer_layers_per_block\S* = 10000000",
        ),
        ("unet", {"reverse_transformer_layers_per_block": [[999]]}, "of 1998 blocks"),
        ("unet", {"block_out_channels": [10**9, 10**9]}, r"block_out_channels\.0 = 1000000000"),
        ("unet", {"block_out_channels": [1 << 20, 1 << 20]}, "shape"),
        ("unet", {"block_out_channels": [32] * 10_000}, "block_out_channels = .* at most 16"),
        ("unet", {"down_block_types": ["DownBlock2D"] * 10_000}, "at most 16"),
        ("unet", {"cross_attention_dim": 10**12}, "shape"),
        ("unet", {"norm_num_groups": 0}, "does not describe an UNet2DConditionModel"),
        ("unet", {"in_channels": -4}, "in_channels = -4"),
        ("unet", {"in_channels": "4" * 10_000}, "in_channels = '444"),
        ("unet", {"sample_size": {"a": 1}}, None),
        ("unet", {"_class_name": "x" * 10_000}, "holds 'xxxx"),
        ("unet", {"attention_head_dim": [[[[]]]]}, "config.json'"),
        ("vae", {"scaling_factor": "large"}, "scaling_factor = 'large'"),
        ("vae", {"scaling_factor": 0}, "scaling_factor = 0"),
        ("vae", {"scaling_factor": -1}, "scaling_factor = -1"),
        ("vae", {"scaling_factor": None}, "scaling_factor = None"),
        ("vae", {"scaling_factor": float("nan")}, "scaling_factor = nan"),
        ("vae", {"latent_channels": 0}, "latent_channels = 0"),
        ("vae", {"layers_per_block": 10**30}, "whole number of 31 digits"),
        ("scheduler", {"num_train_timesteps": 10**12}, "num_train_timesteps = 1000000000000"),
        ("scheduler", {"trained_betas": [2.0] * 1000}, r"trained_betas\.0 = 2"),
        ("scheduler", {"beta_end": float("inf")}, "beta_end = inf"),
        ("scheduler", {"steps_offset": 10**9}, "steps_offset = 1000000000"),
    ],
)
def test_a_configuration_out_of_bounds_is_one_sentence(model, part, changes, sentence):
    folder = model(part, **changes)
    if sentence is None:
        assert load_image_model(folder).unet.config.sample_size == changes["sample_size"]
        return
    with pytest.raises(UserError, match=sentence) as caught:
        load_image_model(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", [DEEP, "[" * 200 + "]" * 200, "[]", "3", '{"a": 1e999}', "\x00"])
@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "text_encoder"])
def test_json_that_is_none_or_endless_is_one_sentence(model, part, text):
    folder = model()
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    path = folder / part / name
    path.unlink()
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_text_tower(folder) if part == "text_encoder" else load_image_model(folder)
    assert "\n" not in str(caught.value)
    assert part in str(caught.value)


def test_what_diffusers_does_not_know_is_not_printed(model, capfd):
    folder = model("unet", **{"\x1b[31mred": "\x1b[0m"})
    load_unet(folder / "unet")
    assert "\x1b" not in "".join(capfd.readouterr())


def test_a_scale_is_read_as_it_is_written_and_diffusers_own_where_it_is_not(model):
    assert latent_scale(model("vae", scaling_factor=0.5) / "vae") == 0.5
    folder = model(name="without")
    config = folder / "vae" / "config.json"
    values = json.loads(config.read_text())
    del values["scaling_factor"]
    config.unlink()
    config.write_text(json.dumps(values))
    assert latent_scale(folder / "vae") == 0.18215


@pytest.mark.parametrize(
    "values",
    [{"labels": 10**9}, {"context_channels": -1}, {"frames_in_alpha": 0}, {"text": [1]}, 3],
)
def test_temporal_layers_out_of_bounds_are_one_sentence(tmp_path, values):
    (tmp_path / "temporal.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="temporal.json': "):
        load_temporal_config(tmp_path)


def test_a_schedule_of_a_file_has_a_beta_per_level(tmp_path, stable_diffusion):
    schedule = NoiseSchedule.load(stable_diffusion / "scheduler")
    assert schedule.timesteps == 1000
    with pytest.raises(UserError, match=r"trained_betas\.1 = 1\.5"):
        NoiseSchedule({"trained_betas": [0.1, 1.5], "num_train_timesteps": 2})


def packed(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A checkpoint whose parts are compressed, as PyTorch never writes it."""
    plain = path.with_suffix(".plain")
    torch.save(tensors, plain)
    with zipfile.ZipFile(plain) as parts, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as to:
        for part in parts.namelist():
            to.writestr(part, parts.read(part))
    plain.unlink()
    return path


def test_a_small_pickle_does_not_unfold_into_large_tensors(tmp_path):
    path = packed(tmp_path / "packed.bin", {"a": torch.zeros(1 << 22)})
    assert path.stat().st_size < 1 << 16
    with pytest.raises(UserError, match=r"packed\.bin' \(its parts are packed and would take"):
        read_checkpoint(path)
    repeated = torch.zeros(1).as_strided((1 << 20, 1 << 20), (0, 0))
    torch.save({"a": repeated}, tmp_path / "repeated.bin")
    with pytest.raises(UserError, match="its tensors would take 4398046511104 bytes"):
        read_checkpoint(tmp_path / "repeated.bin")


def test_tied_weights_are_read(tmp_path):
    one = torch.randn(1000)
    torch.save({"a": one, "b": one, "c": one.view(10, 100)}, tmp_path / "tied.bin")
    found = read_checkpoint(tmp_path / "tied.bin")
    assert torch.equal(found["b"], one)
    assert found["c"].shape == (10, 100)


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ({f"{UNET}out.2.weight": None}, r"lacks 'out\.2\.weight', which shows its shape"),
        ({f"{UNET}out.2.weight": torch.tensor(1.0)}, r"'out\.2\.weight' has shape \(\)"),
        (
            {f"{UNET}input_blocks.{i}.0.out_layers.3.weight": torch.zeros(1) for i in range(999)},
            "does not describe an|at most 16",
        ),
        ({"first_stage_model.decoder.conv_out.weight": None}, r"lacks 'decoder\.conv_out"),
        ({"first_stage_model.encoder.conv_in.weight": torch.zeros(3)}, r"has shape \(3,\)"),
        ({"first_stage_model.encoder.down.99.block.0.conv2.weight": torch.zeros(1)}, "100 levels"),
        ({f"{UNET}x.{i}": torch.zeros(1) for i in range(10_001)}, "expected at most 10000"),
        ({"betas": torch.tensor(0.1)}, r"'betas' has shape \(\)"),
        ({"betas": torch.full((1000,), float("nan"))}, r"trained_betas\.0 = nan"),
        ({"betas": torch.zeros(200_000)}, "at most 100000"),
    ],
)
def test_a_single_file_that_is_laid_out_otherwise_is_one_sentence(tmp_path, edit, sentence):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in edit.items():
            tensors.pop(name, None)
            if tensor is not None:
                tensors[name] = tensor

    path = write_single_file(tmp_path / "model.safetensors", "sd2", change)
    with pytest.raises(UserError, match=sentence) as caught:
        load_image_model(path, predicts="v_prediction")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def huge_tower(folder: Path) -> Path:
    """A kilobyte of weights for a tower of 40 GB."""
    folder.mkdir()
    config = TextConfig(width=4096, heads=64, layers=48, context_length=1024)
    (folder / "config.json").write_text(config.model_dump_json())
    save_file({"positional_embedding": torch.zeros(4)}, folder / "model.safetensors")
    return folder


def huge_text_file(path: Path) -> Path:
    """A megabyte in which every layer is there, and is a name alone."""
    own = {f"transformer.resblocks.{i}.ln_1.weight": torch.zeros(1) for i in range(150)}
    own |= {
        "positional_embedding": torch.zeros(8, 8192),
        "token_embedding.weight": torch.zeros(50_000, 1),
    }
    save_file({f"cond_stage_model.model.{name}": t for name, t in own.items()}, path)
    return path


def many_words(folder: Path, unet) -> Path:
    """Tokens of a hundred words, described as those of a million."""
    small = Vocabulary(labels=({"name": "time", "values": ("day", "night")},))  # type: ignore[arg-type]
    condition_tokens_for(unet, small, seed=0).save(folder)
    words = [str(i) for i in range(8_000_000 // unet.config.cross_attention_dim)]
    large = {"labels": [{"name": f"l{i}", "values": words} for i in range(10)]}
    (folder / "tokens.json").write_text(json.dumps(large))
    return folder


def test_small_files_that_ask_for_gigabytes_take_none(model, stable_diffusion, tmp_path):
    wide = model("unet", name="wide", block_out_channels=[65_536, 65_536])
    text = model("text_encoder", name="text", hidden_size=16_384, num_hidden_layers=100)
    deep = model("unet", name="deep", layers_per_block=400, transformer_layers_per_block=1)
    unet = load_unet(stable_diffusion / "unet")
    asked = [
        f"image:{wide}",
        f"image:{deep}",
        f"text:{text}",
        f"text:{huge_text_file(tmp_path / 'huge.safetensors')}",
        f"tower:{huge_tower(tmp_path / 'tower')}",
        f"tokens:{many_words(tmp_path / 'tokens', unet)}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(stable_diffusion), *asked],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = done.stdout.splitlines()
    assert [answer.split(":")[0] for answer in answers] == ["refused"] * len(asked), answers


def test_an_honest_tower_of_the_same_kind_is_taken(tmp_path):
    tower = TextTower.build(TextConfig(context_length=8, width=32, heads=2, layers=2))
    tower.save(tmp_path)
    assert TextTower.load(tmp_path).digest() == tower.digest()
    assert ScheduleConfig(predicts="epsilon").build().predicts == "epsilon"
