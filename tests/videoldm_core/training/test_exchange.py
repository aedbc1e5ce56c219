"""What processes say to each other arrives whole, and is never unpickled."""

import re
import threading
from pathlib import Path

import pytest
import torch

from flows.launch import Command
from flows.launch.local import LocalLauncher
from videoldm_core.evaluation.comparison import gather_series
from videoldm_core.training.exchange import of_all_processes

ROOT = Path(__file__).parents[3]
SAYING = """
import sys
from pathlib import Path
import torch
from torch import distributed
from videoldm_core.training.exchange import of_all_processes
from videoldm_core.evaluation.comparison import gather_series
from videoldm_core.training.engine import join_processes
join_processes()
rank = distributed.get_rank()
heard = of_all_processes(b"\\x00 first" if rank == 0 else b"and the second \\xff")
series = {"psnr": torch.tensor([[1.0, 2.0], [3.0, 4.0]])[:, : rank + 1] + 10 * rank}
whole = gather_series(series)
path = Path(sys.argv[1])
path.with_name(f"heard{rank}").write_text(repr((heard, whole["psnr"].tolist())))
distributed.destroy_process_group()
"""


def test_every_process_hears_all_of_them(tmp_path, monkeypatch):
    (tmp_path / "saying.py").write_text(SAYING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = Command(
        module="saying",
        argument=tmp_path / "none",
        processes=2,
        log=tmp_path / "log.txt",
        journal=tmp_path / "journal.jsonl",
    )
    LocalLauncher().launch(command, on_line=print, cancelled=threading.Event())
    expected = ([b"\x00 first", b"and the second \xff"], [[1.0, 11.0, 12.0], [3.0, 13.0, 14.0]])
    for rank in range(2):
        assert (tmp_path / f"heard{rank}").read_text() == repr(expected)


def test_a_lone_process_hears_itself():
    assert of_all_processes(b"alone") == [b"alone"]
    series = {"psnr": torch.ones(1, 2)}
    assert gather_series(series) is series


@pytest.mark.parametrize("package", ["videoldm_core", "preprocessing", "flows"])
def test_no_object_is_sent_between_processes(package):
    """torch.distributed pickles objects, and unpickles what comes over the socket."""
    sends = re.compile(r"(gather|broadcast|scatter|send|recv)_object(_list)?\(")
    found = [path for path in (ROOT / package).rglob("*.py") if sends.search(path.read_text())]
    assert found == []
