"""Measures a trained stage on held-out clips: `python -m videoldm_core.evaluate job.json`.

The same measurement that training ends with, on what is published now; writes worth.json
beside stage.json.
"""

import json
import sys
from pathlib import Path

import torch

from videoldm_core.evaluation.comparison import WorthRow, gather_series
from videoldm_core.evaluation.measuring import Evidence
from videoldm_core.jobs.clips import StageData
from videoldm_core.jobs.job import Job, load_job
from videoldm_core.jobs.published import part_paths
from videoldm_core.models.parts import Parts
from videoldm_core.system.command import run_command
from videoldm_core.system.files import write_text_atomically

FILE = "worth.json"


def main() -> int:
    """The command; a user's error is one sentence on stderr and exit code 2."""
    return run_command(lambda: evaluate(load_job(Path(sys.argv[1]))))


def evaluate(job: Job) -> None:
    """Writes the worth rows of the job's published stage.

    Raises:
        UserError: the stage is not published, or its weights or clips cannot be read.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = StageData(job, rank=0, world=1)
    rows = judge(job, part_paths(job.out, verify=True), data, device)
    text = json.dumps([row.model_dump() for row in rows], indent=2)
    write_text_atomically(job.out / FILE, text)


@torch.no_grad()
def judge(job: Job, parts: Parts, data: StageData, device: torch.device) -> tuple[WorthRow, ...]:
    """The worth rows of a stage; every process of a group calls it with its share of the clips.

    Networks run as they do in sampling: float32 weights, in the job's precision.

    Args:
        parts: of the trained stage, inherited ones included.
    """
    proof = job.stage.proves
    evidence = Evidence(
        parts=parts,
        inherited=job.parts,
        given=job.stage.given,
        heldout=data.heldout(job.stage.heldout_clips),
        training=data.training_clips,
        device=device,
    )
    with job.autocast(device):
        series = gather_series(proof.measure(evidence))
    return tuple(claim.judge(job.stage.name, series) for claim in proof.claims)


if __name__ == "__main__":
    sys.exit(main())
