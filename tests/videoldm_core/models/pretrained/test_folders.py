"""Modules in folders: read as they were saved, under new and old names, or refused by key."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videoldm_core.errors import UserError
from videoldm_core.models.frozen_encoder import load_frozen_encoder
from videoldm_core.models.image import AutoencoderConfig, UNetConfig, load_unet, load_vae
from videoldm_core.models.pretrained.folders import DIFFUSERS, TRANSFORMERS, weight_file

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
KINDS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "unet": (load_unet, "conv_in.weight"),
    "vae": (load_vae, "encoder.conv_in.weight"),
    "tiny": (load_frozen_encoder, "encoder.layers.0.weight"),
}


def built(kind: str) -> nn.Module:
    """A small module of each kind that is read."""
    if kind == "unet":
        return UNetConfig(
            widths=(16, 32), attention=(False, True), layers_per_block=1, heads=2, text=8, groups=8
        ).build(0)
    if kind == "vae":
        return AutoencoderConfig(widths=(8, 16), layers_per_block=1, groups=4).build(0)
    torch.manual_seed(0)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def folder(kind, tmp_path) -> Path:
    built(kind).save_pretrained(tmp_path / kind)
    return tmp_path / kind


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


def is_same(module: nn.Module, other: nn.Module) -> bool:
    ours, theirs = module.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_a_folder_gives_the_module_that_was_saved(kind, folder):
    module = KINDS[kind][0](folder)
    assert is_same(module, built(kind))
    assert not module.training
    assert dict(module.config)["_class_name"] == type(module).__name__ == type(built(kind)).__name__


def test_a_missing_key_is_named_with_its_shape(kind, folder):
    load, key = KINDS[kind]
    rewrite(folder, lambda tensors: tensors.pop(key))
    with pytest.raises(UserError, match=rf"{WEIGHTS}' lacks '{key}' \(expected shape \(\d+, \d"):
        load(folder)


def test_an_unknown_key_is_named(kind, folder):
    rewrite(folder, lambda tensors: tensors.update({"conv_extra.weight": torch.zeros(2)}))
    with pytest.raises(UserError, match=r"holds 'conv_extra\.weight', which this model does not"):
        KINDS[kind][0](folder)


def test_a_key_of_another_shape_is_named_with_both(kind, folder):
    load, key = KINDS[kind]
    rewrite(folder, lambda tensors: tensors.update({key: torch.zeros(3, 5)}))
    with pytest.raises(UserError, match=rf"'{key}' has shape \(3, 5\), expected \(\d+, \d+, 3, 3"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_weights_that_are_no_real_numbers_are_refused_by_key_and_type(kind, folder, dtype):
    load, key = KINDS[kind]
    rewrite(folder, lambda tensors: tensors.update({key: tensors[key].to(dtype)}))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"'{key}' is of type {name}, expected floating point"):
        load(folder)


def test_the_folder_of_another_class_is_refused(kind, folder):
    others = [load for name, (load, _) in KINDS.items() if name != kind]
    for load in others[:1] if kind == "vae" else others:  # an autoencoder is a frozen encoder too
        if (kind, load) == ("vae", load_frozen_encoder):
            continue
        with pytest.raises(UserError, match=f"holds '{type(built(kind)).__name__}', expected "):
            load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("null", r"holds NoneType, expected an object"),
        ("{", r"Cannot read '.*config\.json' \(Expecting property"),
        ('{"_class_name": null}', "holds None, expected"),
        ('{"_class_name": ["AutoencoderKL"]}', "holds .'AutoencoderKL'., expected"),
    ],
)
def test_a_config_that_describes_nothing_is_refused(kind, folder, config, message):
    (folder / "config.json").write_text(config)
    with pytest.raises(UserError, match=message):
        KINDS[kind][0](folder)


def test_a_value_of_the_config_that_cannot_be_is_one_sentence(kind, folder):
    config = json.loads((folder / "config.json").read_text())
    for name in ("block_out_channels", "encoder_block_out_channels", "down_block_types"):
        if name in config:
            config[name] = None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json': \w+ = None: .* valid tuple; get the"):
        KINDS[kind][0](folder)


def test_a_folder_without_config_or_weights_is_named(kind, folder):
    load = KINDS[kind][0]
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=rf"No weights in '.*{kind}': expected {WEIGHTS}, or one"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"Cannot read '.*config\.json' \(No such file"):
        load(folder)


def test_half_precision_and_pickled_files_are_read_in_single_precision(kind, folder):
    load, tensors = KINDS[kind][0], load_file(folder / WEIGHTS)
    half = {name: tensor.half() for name, tensor in tensors.items()}
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "diffusion_pytorch_model.bin")
    assert is_same(load(folder), built(kind))
    save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    loaded = load(folder).state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in half.items())


def test_a_model_in_several_files_is_read_through_its_index(kind, folder):
    built(kind).save_pretrained(folder, max_shard_size="20KB")
    (folder / WEIGHTS).unlink()
    pieces = sorted(path.name for path in folder.glob("*-of-*.safetensors"))
    assert len(pieces) > 1
    assert is_same(KINDS[kind][0](folder), built(kind))
    (folder / pieces[0]).unlink()
    with pytest.raises(UserError, match=f"Cannot read '.*{pieces[0]}'"):
        KINDS[kind][0](folder)


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {"w": "../w.safetensors"}}', "[]"])
def test_an_index_that_leads_elsewhere_is_refused(kind, folder, index):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(index)
    with pytest.raises(UserError, match=r"index\.json'"):
        KINDS[kind][0](folder)


@pytest.mark.parametrize("as_convolution", [False, True])
def test_attention_of_old_autoencoders_is_read_under_its_old_names(tmp_path, as_convolution):
    vae = AutoencoderConfig(widths=(8, 16), layers_per_block=1, groups=4).build(0)
    vae.save_pretrained(tmp_path)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if ".attentions.0.to_" in key]:
            part = next(part for part in names if f".{part}." in key)
            tensor = tensors.pop(key)
            if as_convolution and tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
            tensors[key.replace(part, names[part])] = tensor

    rewrite(tmp_path, age)
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in load_file(tmp_path / WEIGHTS)
    assert is_same(load_vae(tmp_path), vae)


def test_a_module_outlives_the_file_it_was_read_from(folder, kind):
    module = KINDS[kind][0](folder)
    (folder / WEIGHTS).write_bytes(bytes((folder / WEIGHTS).stat().st_size))
    assert is_same(module, built(kind))


def test_the_best_file_of_weights_is_exact_then_half_then_pickled():
    names = {
        "model.safetensors",
        "model.fp16.safetensors",
        "pytorch_model.bin",
        "pytorch_model.fp16.bin",
        "diffusion_pytorch_model.bin",
        "model.onnx",
    }
    order = []
    while (best := weight_file(names, TRANSFORMERS)) is not None:
        order.append(best)
        names.remove(best)
    assert order == [
        "model.safetensors",
        "model.fp16.safetensors",
        "pytorch_model.bin",
        "pytorch_model.fp16.bin",
    ]
    assert weight_file(names, DIFFUSERS) == "diffusion_pytorch_model.bin"


def test_a_hostile_pickle_in_a_folder_is_refused_and_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (ran,))

    vae: AutoencoderKL = AutoencoderConfig(widths=(8, 16), layers_per_block=1, groups=4).build(0)
    vae.save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save({"weight": Hostile()}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="Cannot read"):
        load_vae(tmp_path)
    assert not ran.exists()
