"""Each process's share of the clips that a stage is judged by."""

import torch

from videoldm_core.jobs.clips import StageData


def heldout(job, *, rank: int, world: int, clips: int) -> tuple[torch.Tensor, list[int]]:
    """Clips b t c h w of one process, and their sample numbers."""
    batches = StageData(job, rank=rank, world=world).heldout(clips)
    return torch.cat([b.clip for b in batches]), torch.cat([b.sample_ids for b in batches]).tolist()


def test_processes_share_the_heldout_clips_that_one_alone_would_have(job_of):
    job, _ = job_of("shared")
    whole, numbers = heldout(job, rank=0, world=1, clips=6)
    shares = [heldout(job, rank=rank, world=3, clips=6) for rank in range(3)]
    assert numbers == list(range(6))
    assert [ids for _, ids in shares] == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(torch.cat([clips for clips, _ in shares]), whole)
    assert len({clip.sum().item() for clip in whole}) == 6, "clips that can be told apart"


def test_where_clips_are_fewer_than_processes_some_have_the_same_one(job_of):
    job, _ = job_of("shared")
    whole, _ = heldout(job, rank=0, world=1, clips=2)
    shares = [heldout(job, rank=rank, world=3, clips=2)[0] for rank in range(3)]
    assert torch.equal(torch.cat(shares), whole[[0, 1, 0]])
