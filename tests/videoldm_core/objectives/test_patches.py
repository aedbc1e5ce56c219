"""The patches of frames that upscalers are trained on (§3.4)."""

import torch

from videoldm_core.diffusion.sample_rng import SampleRng
from videoldm_core.objectives.denoising import random_patches


def test_a_patch_is_the_same_place_in_all_frames_of_a_clip_and_another_in_other_clips():
    place = torch.arange(10 * 12.0).view(10, 12).expand(16, 3, 2, 10, 12)
    patches = random_patches(place, 4, SampleRng(0, "x", torch.arange(16)))
    assert patches.shape == (16, 3, 2, 4, 4)
    assert torch.equal(patches, patches[:, :1, :1].expand_as(patches))
    corners = patches[:, 0, 0, 0, 0]
    assert len(corners.unique()) > 8
    expected = corners.view(-1, 1, 1) + place[0, 0, 0, :4, :4]
    assert torch.equal(patches[:, 0, 0], expected)


def test_patches_reach_every_border():
    place = torch.arange(9.0).view(3, 3).expand(200, 1, 1, 3, 3)
    patches = random_patches(place, 2, SampleRng(0, "x", torch.arange(200)))
    assert sorted(patches[:, 0, 0, 0, 0].unique().tolist()) == [0, 1, 3, 4]
