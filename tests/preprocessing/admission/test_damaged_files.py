"""Videos damaged at random, through admission, clips and a store: each costs itself at most."""

import resource

import pytest

from preprocessing.video.plausible import LONGEST_MEAN_FRAME_S
from tests.preprocessing.damaged import CONTAINERS, FRAMES, Tally, damaged, try_damages, write_sound

MOST_GROWTH_BYTES = 512 * 2**20  # of this process, whatever the files claim


def check(tally: Tally, files: int, before_bytes: int) -> None:
    assert tally.files == files
    assert tally.admitted + tally.refused.total() == files
    assert 0 < tally.admitted < files
    assert tally.stored > tally.admitted / 2
    assert tally.longest_s <= FRAMES * LONGEST_MEAN_FRAME_S, tally
    assert tally.peak_bytes - before_bytes < MOST_GROWTH_BYTES, tally


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_damaged_file_is_admitted_as_what_can_be_decoded_or_refused_with_its_reason(tmp_path):
    before_bytes = peak_bytes()
    check(try_damages(tmp_path / "short", range(150)), 150, before_bytes)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_of_thousands_of_damaged_files_none_is_admitted_as_longer_than_it_can_be(tmp_path):
    before_bytes = peak_bytes()
    tally = try_damages(tmp_path / "long", range(150, 5150))
    check(tally, 5000, before_bytes)
    assert tally.refused["implausible times"] > 0, "the damages reach what this is about"


def test_damages_are_the_same_every_time(tmp_path):
    name, encoder, pixels = CONTAINERS[0]
    sound = write_sound(tmp_path / name, encoder, pixels)
    assert [damaged(sound, seed) for seed in range(50)] == [damaged(sound, s) for s in range(50)]
    assert sum(damaged(sound, seed) != sound for seed in range(50)) > 45
