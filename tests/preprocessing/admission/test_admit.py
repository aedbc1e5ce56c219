"""What is used, what is refused and why, and what each stage will see."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

from preprocessing.admission import examine
from preprocessing.admission.record import read_admission
from preprocessing.isolation.workers import IsolatedError, Outcome
from preprocessing.sources.folder import find_sources
from tests.preprocessing.conftest import InThisProcess
from videoldm_core.errors import UserError


def by_name(admission):
    return {video.name: video for video in admission.videos}


def test_good_videos_are_accepted_and_each_stage_is_told_what_it_will_see(admit_folder, tmp_path):
    admission = admit_folder()
    assert (admission.accepted, admission.refused, admission.seconds) == (3, 0, 15.0)
    stages = {stage.name: stage for stage in admission.stages}
    assert stages["motion"].needs_s == 17 / 8
    assert stages["motion"].videos == 3
    for stage in admission.stages:
        for split, counts in (("train", stage.train_windows), ("heldout", stage.heldout_windows)):
            lengths = [clip.frames for clip in admission.clips if clip.split == split]
            assert counts == tuple(
                sum(max(0, length - (stage.frames - 1) * stride) for length in lengths)
                for stride in stage.strides
            )
            assert all(counts)
    assert "1/5" in admission.split_rule
    assert {video.split for video in admission.videos} == {"both"}
    assert read_admission(tmp_path / "out") == admission


def test_a_broken_video_among_good_ones_costs_only_itself(
    admit_folder, folder, counting_video, processes
):
    (folder / "notes.mp4").write_text("not a video at all\n" * 50)
    (folder / "empty.mkv").touch()
    shutil.copy(folder / "good0.mp4", folder / "twin.mp4")
    counting_video("blink.mp4", frames=2, fps=25, folder=folder)
    admission = admit_folder()
    reasons = {video.name: video.reason for video in admission.videos if not video.is_accepted}
    assert reasons == {
        "notes.mp4": "not a video: it is a text file",
        "empty.mkv": "empty file: it has 0 bytes",
        "twin.mp4": "duplicate: the same bytes as 'good0.mp4'",
        "blink.mp4": "too short: it lasts 0.08 s, the shortest window of any stage 0.12 s",
    }
    assert {clip.source for clip in admission.clips} == {"good0.mp4", "good1.mp4", "good2.mp4"}


def test_a_short_video_is_used_by_the_stages_it_is_long_enough_for(
    admit_folder, folder, counting_video
):
    counting_video("short.mp4", frames=6, fps=8, folder=folder)
    report = by_name(admit_folder())["short.mp4"]
    assert report.is_accepted
    assert report.unseen_by == ("motion at stride 4",)
    counting_video("short.mp4", frames=4, fps=8, folder=folder)
    report = by_name(admit_folder())["short.mp4"]
    assert report.unseen_by == ("motion", "upscaler")


def test_small_videos_and_lying_headers_are_noted(admit_folder):
    notes = by_name(admit_folder(upscale=4))["good0.mp4"].notes
    assert notes == ("its 64x48 pixels are enlarged to 128x96 for the upscalers",)


def test_an_unchanged_video_is_examined_once(admit_folder, folder, counting_video, monkeypatch):
    examined = []
    real = examine._examine
    monkeypatch.setattr(
        examine,
        "_examine",
        lambda sources, *args: examined.extend(s.name for s in sources) or real(sources, *args),
    )
    first = admit_folder()
    assert admit_folder() == first
    assert admit_folder(clip_seconds=2.5).clips != first.clips
    (folder / "good0.mp4").rename(folder / "renamed.mp4")
    counting_video("added.mp4", frames=30, fps=8, folder=folder)
    assert {video.name for video in admit_folder().videos} == {
        "renamed.mp4", "good1.mp4", "good2.mp4", "added.mp4"
    }  # fmt: skip
    assert examined == ["good0.mp4", "good1.mp4", "good2.mp4", "added.mp4"]


def test_an_interrupted_admission_goes_on_where_it_was(admit_folder, tmp_path):
    def interrupt(done, total, name):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        admit_folder(progress=interrupt)
    assert not (tmp_path / "out" / "admission.json").exists()
    findings = tmp_path / "out" / examine.FINDINGS
    findings.write_text(findings.read_text() + '\n{"digest": "torn')
    seen = []
    admit_folder(progress=lambda *step: seen.append(step))
    assert seen[0] == (2, 3, "2 examined before")
    assert seen[-1][:2] == (3, 3)


@pytest.fixture
def ended_by(monkeypatch):
    """ended_by(cause): within it, every call ends that way; gives the names that were examined."""

    @contextmanager
    def end(cause):
        examined = []

        class Stopping(InThisProcess):
            def run(self, function, calls):
                for index, call in enumerate(calls):
                    examined.append(Path(call.args[0]).name)
                    yield Outcome(index, error=IsolatedError("it took too much", cause))

        with monkeypatch.context() as patch:
            patch.setattr(examine, "Workers", Stopping)
            yield examined

    return end


@pytest.mark.parametrize("cause", ["waiting", "memory", "lost", "untrue"])
def test_a_video_stopped_by_the_machine_is_refused_and_tried_again(admit_folder, ended_by, cause):
    with (
        ended_by(cause),
        pytest.raises(
            UserError, match=r"'stopped' \(3\), as 'good0.mp4': stopped: it took too much"
        ),
    ):
        admit_folder()
    assert admit_folder().accepted == 3


def test_a_video_that_uses_up_its_processor_time_is_refused_and_not_tried_again(
    admit_folder, ended_by
):
    for _ in range(2):
        with (
            ended_by("idle") as examined,
            pytest.raises(
                UserError,
                match=r"'too long to decode' \(3\), as 'good0.mp4': too long to decode: it",
            ),
        ):
            admit_folder()
    assert examined == []


def test_a_video_that_needs_more_processor_time_is_tried_again_when_it_may_have_more(
    admit_folder, ended_by
):
    said = "too long to decode: it took too much; set decode_cpu_hours to more than 2; give others"
    for hours in (2.0, 2.0, 1.0):
        with ended_by("total") as examined, pytest.raises(UserError, match=said):
            admit_folder(cpu_hours=hours)
    assert examined == []
    assert admit_folder(cpu_hours=2.1).accepted == 3


def test_what_other_rules_found_is_not_believed(admit_folder, tmp_path, monkeypatch):
    admit_folder()
    monkeypatch.setattr(examine, "RULES", examine.RULES + 1)
    seen = []
    admit_folder(progress=lambda *step: seen.append(step))
    assert seen[0][:2] == (1, 3), "none is known"
    findings = tmp_path / "out" / examine.FINDINGS
    findings.write_text(findings.read_text().replace(f',"rules":{examine.RULES}', ""))
    admit_folder(progress=lambda *step: seen.append(step))
    assert seen[3][:2] == (1, 3), "of the versions before rules were counted, neither"


def test_what_a_library_says_of_an_odd_name_does_not_stop_the_run(admit_folder, monkeypatch):
    real = examine._examine

    def complaining(sources, *rest):
        for source, finding in real(sources, *rest):
            if source.name == "good1.mp4":
                error = ValueError("cannot open 'caf\udce9'\nnor \x1b[31mthis")
                finding = examine._refusal(source.digest, error, 1.0)
            yield source, finding

    monkeypatch.setattr(examine, "_examine", complaining)
    for _ in range(2):
        report = by_name(admit_folder())["good1.mp4"]
        assert report.reason == r"undecodable: cannot open 'caf\xe9' nor \x1b[31mthis"


def test_nothing_accepted_names_the_count_and_the_usual_reason(folder, admit_folder, tmp_path):
    for path in folder.iterdir():
        path.write_text("text")
    (folder / "good0.mp4").touch()
    (folder / "good0.mp4").write_bytes(b"")
    (folder / "good2.mp4").write_text("more text")
    with pytest.raises(
        UserError,
        match=r"None of the 3 videos can be used, most often because of 'not a video' \(2\), "
        r"as 'good1.mp4': not a video: it is a text file; give others \(see '.*admission.html'\)",
    ):
        admit_folder()
    assert (tmp_path / "out" / "admission.html").exists()
    assert read_admission(tmp_path / "out") is None, (
        "a failed admission is not taken for a good one"
    )


def test_a_stage_without_windows_is_named_with_what_it_needs(admit_folder, tmp_path):
    with pytest.raises(
        UserError,
        match=r"Stage 'slow' would see no training window: 5 frames at stride 11 need 5.62 s at "
        r"8 frames/s, and the longest training clip has 5.00 s; add videos, at least two of 5.6",
    ):
        admit_folder(windows={"image": (1, (1,)), "slow": (5, (11,))}, clip_seconds=6.0)
    assert read_admission(tmp_path / "out") is None
    assert admit_folder().accepted == 3, "the next correct run goes on from there"


def test_a_report_of_another_version_is_said_and_not_taken_for_none(tmp_path):
    (tmp_path / "admission.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match=r"admission.json' is not an admission report of this vers"):
        read_admission(tmp_path)
    assert read_admission(tmp_path / "nowhere") is None


def test_a_single_short_video_leaves_nothing_to_hold_out(admit_folder, folder):
    (folder / "good1.mp4").unlink()
    (folder / "good2.mp4").unlink()
    with pytest.raises(
        UserError, match=r"Stage 'slow' would see no held-out window.*there is none"
    ):
        admit_folder(windows={"image": (1, (1,)), "slow": (5, (6,))}, clip_seconds=5)


def test_clips_cut_shorter_than_a_stage_reads_are_refused_before_decoding(admit_folder, tmp_path):
    with pytest.raises(
        UserError,
        match=r"Clips are cut to 2 s, but stage 'motion' reads 5 frames at stride 4, that is "
        r"2.12 s at 8 frames/s; set video.clip_seconds to at least 2.12",
    ):
        admit_folder(clip_seconds=2.0)
    assert not (tmp_path / "out").exists()


def test_many_videos_hold_out_whole_ones(admit_folder, folder, counting_video):
    for index in range(6):
        counting_video(
            f"more{index}.mp4", frames=24, fps=8, folder=folder, size=(64, 60 + 2 * index)
        )
    admission = admit_folder()
    assert {video.split for video in admission.videos} == {"train", "heldout"}
    held = {clip.source for clip in admission.clips if clip.split == "heldout"}
    assert 2 <= len(held) <= 3
    assert held.isdisjoint(clip.source for clip in admission.clips if clip.split == "train")


def test_an_output_folder_that_cannot_be_written_is_named(admit_folder, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(
        UserError, match=r"Cannot write '.*out.*'; free space there or choose|Cannot write"
    ):
        admit_folder()


def test_a_folder_of_real_broken_files_is_reported_in_full(
    asset, admit_folder, tmp_path, processes
):
    broken = find_sources(asset("videos/broken"))
    with pytest.raises(UserError, match="None of the 9 videos"):
        admit_folder(sources=broken)
    record = json.loads((tmp_path / "out" / "admission.json").read_text())
    assert sorted({video["category"] for video in record["videos"]}) == [
        "encrypted", "not a video", "truncated", "undecodable"
    ]  # fmt: skip
