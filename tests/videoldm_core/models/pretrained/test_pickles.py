"""Pickled checkpoints give tensors, or a sentence that says what they are instead."""

import warnings

import pytest
import torch
from torch import nn

from videoldm_core.errors import UserError
from videoldm_core.models.pretrained.pickles import load_pickled


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_program_is_named_and_not_called_damaged(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "ViT-L-14.pt")
    with warnings.catch_warnings(record=True) as said, pytest.raises(UserError) as refused:
        load_pickled(tmp_path / "ViT-L-14.pt")
    assert "is a TorchScript program" in str(refused.value)
    assert "damaged" not in str(refused.value)
    assert not said


def test_tensors_and_plain_containers_are_read(tmp_path):
    kept = {"state_dict": {"weight": torch.arange(3.0)}, "global_step": 7}
    torch.save(kept, tmp_path / "model.ckpt")
    found = load_pickled(tmp_path / "model.ckpt")
    assert isinstance(found, dict)
    assert found["global_step"] == 7
    assert torch.equal(found["state_dict"]["weight"], kept["state_dict"]["weight"])


def test_a_cut_file_is_refused_and_named(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"weight": torch.zeros(999)}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="check the path or get the file again"):
        load_pickled(path)
