"""Files of weights that are hostile, damaged or of another kind give tensors or one sentence."""

import random
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from videoldm_core.errors import UserError
from videoldm_core.models.weights import check_keys, read_checkpoint

RAN: list[str] = []


class Hostile:
    """Runs code where it is unpickled as usual."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (RAN.append, ("reduced",))


@pytest.fixture
def lightning(monkeypatch) -> Any:
    """lightning("model_checkpoint.ModelCheckpoint"): its class, there only while files are made."""

    def make(name: str) -> type:
        module, _, own = f"pytorch_lightning.callbacks.{name}".rpartition(".")
        parts = module.split(".")
        for i in range(1, len(parts) + 1):
            monkeypatch.setitem(
                sys.modules, ".".join(parts[:i]), types.ModuleType(".".join(parts[:i]))
            )
        found = type(own, (), {"__module__": module, "__setstate__": RAN.append})
        setattr(sys.modules[module], own, found)
        return found

    return make


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_training_left_in_a_checkpoint_is_read_over_and_not_run(
    lightning, monkeypatch, tmp_path, is_zip
):
    callback = lightning("model_checkpoint.ModelCheckpoint")
    held = callback()
    held.best = torch.zeros(1)
    content = {
        "state_dict": {"weight": torch.ones(3)},
        "callbacks": {callback: {"best_model_path": "x"}, "held": held},
        "lr_schedulers": [{"last_lr": np.float64(0.1), "best": np.int64(3)}],
        "epoch": 3,
    }
    path = tmp_path / "sd-v1-4.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    monkeypatch.undo()
    RAN.clear()
    assert list(read_checkpoint(path)) == ["weight"]
    assert not RAN


def test_any_other_class_is_named_with_what_to_do(lightning, tmp_path):
    RAN.clear()
    for thing, name in (
        (Hostile(), "getattr"),
        (np.zeros(3), r"numpy\._?core\.multiarray\._reconstruct"),
        (Path("x"), r"pathlib\.PosixPath"),
        (lightning("other.Other"), r"pytorch_lightning\.callbacks\.other\.Other"),
    ):
        torch.save({"state_dict": {"weight": torch.ones(1)}, "x": thing}, tmp_path / "m.ckpt")
        with pytest.raises(UserError, match=f"it holds a .*({name}).*convert the file to safet"):
            read_checkpoint(tmp_path / "m.ckpt")
    assert not RAN


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_damaged_pickle_is_one_sentence_whatever_the_damage(is_zip, tmp_path):
    path, damage = tmp_path / "model.ckpt", random.Random(0)
    content = {"state_dict": {"a.weight": torch.ones(3), "b.weight": torch.zeros(2, 2)}}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    whole, sentences = path.read_bytes(), set()
    for _ in range(150):
        broken = bytearray(whole)
        broken[damage.randrange(min(600, len(broken)))] = damage.randrange(256)
        path.write_bytes(bytes(broken[: damage.choice([len(broken), len(broken) // 2])]))
        try:
            read_checkpoint(path)
        except UserError as error:
            sentences.add(str(error))
    assert sentences
    assert all(sentence.startswith("Cannot read") for sentence in sentences)
    assert not any("\n" in sentence or "\x1b" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ([torch.ones(1)], "list"),
        (torch.ones(1), "Tensor"),
        ({"state_dict": [torch.ones(1)]}, "list"),
        ({"state_dict": torch.ones(1)}, "Tensor"),
        ({"state_dict": None}, "NoneType"),
    ],
)
def test_what_names_no_tensors_is_refused(content, kind, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=f"it holds a {kind} in place of named tensors"):
        read_checkpoint(tmp_path / "model.pt")


def test_only_named_tensors_are_taken_from_what_surrounds_them(tmp_path):
    torch.save({"weight": torch.ones(1), 3: torch.ones(1), "step": 7}, tmp_path / "model.pt")
    assert list(read_checkpoint(tmp_path / "model.pt")) == ["weight"]


def test_a_folder_or_nothing_in_place_of_a_file_is_one_sentence(tmp_path):
    for name in ("model.pt", "model.safetensors"):
        with pytest.raises(UserError, match=rf"Cannot read '.*{re.escape(name)}' \(No such file"):
            read_checkpoint(tmp_path / name)
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=rf"Cannot read '.*{re.escape(name)}' \("):
            read_checkpoint(tmp_path / name)


def test_the_first_wrong_key_is_named_with_what_was_expected(tmp_path):
    expected = {"weight": torch.zeros(2, 3), "steps": torch.zeros(1, dtype=torch.int64)}
    whole = {name: tensor.clone() for name, tensor in expected.items()}
    check_keys(expected, whole, where="it")
    for change, message in (
        ({"weight": torch.zeros(3)}, r"'weight' has shape \(3,\), expected \(2, 3\)"),
        ({"weight": torch.zeros(2, 3).bool()}, "'weight' is of type bool, expected floating point"),
        ({"weight": torch.zeros(2, 3).to(torch.int8)}, "'weight' is of type int8, expected float"),
        ({"more": torch.zeros(1)}, "holds 'more', which this model does not have"),
    ):
        save_file(whole | change, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=message):
            check_keys(expected, read_checkpoint(tmp_path / "w.safetensors"), where="it")
    with pytest.raises(UserError, match=r"lacks 'weight' \(expected shape \(2, 3\)\)"):
        check_keys(expected, {"steps": whole["steps"]}, where="it")
