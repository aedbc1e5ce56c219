"""Admission without its decoding, for more and more videos: CPU-seconds per 1,000 of them.

    python -m benchmarks.admission --videos 1000 10000 100000

Every video has a caption and a finding as decoding would have left it (20 s of video, 3 clips);
nothing is decoded. Four parts are timed: looking through a folder of as many small files whose
digests are known; all that follows from the findings (who is held out, clips, what every stage of
the tiny preset sees, the report and its page); reading the report; planning the shards of its
clips. What is linear takes the same time per 1,000 videos everywhere. The peak of memory is the
process's so far.
"""

import argparse
import hashlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.timing import processor
from preprocessing.admission.admit import admit
from preprocessing.admission.examine import FINDINGS, Finding
from preprocessing.admission.record import Admission, read_admission
from preprocessing.encoding.shard import plan_units
from preprocessing.sources.folder import Survey, survey_folder
from preprocessing.video.decode import Probe
from videoldm_core.cascade.stage import preset
from videoldm_core.data.storage import LocalStorage

T = TypeVar("T")
PROBE = Probe(
    frames=600,
    duration_s=20.0,
    fps=30.0,
    variable_rate=False,
    longest_frame_s=1 / 30,
    width=1280,
    height=720,
    codec="h264",
    header_frames=600,
    header_fps=30.0,
    header_duration_s=20.0,
)
THUMBNAIL = "data:image/jpeg;base64," + "A" * 2700  # as long as that of an ordinary video
LONG_AGO_NS = 1_700_000_000_000_000_000
TABLE = preset("tiny")


def make_folder(folder: Path, videos: int) -> list[str]:
    """Files with unlike bytes and old times, a caption for each; their digests, in name order."""
    digests = []
    for number in range(videos):
        path = folder / f"{number // 1000:04d}" / f"{number:08d}.mp4"
        path.parent.mkdir(exist_ok=True, parents=True)
        content = f"video {number}".encode()
        path.write_bytes(content)
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
        digests.append(hashlib.sha256(content).hexdigest())
    rows = (f"{n // 1000:04d}/{n:08d}.mp4,what is seen in number {n}\n" for n in range(videos))
    (folder / "captions.csv").write_text("file,caption\n" + "".join(rows))
    return digests


def keep_findings(out: Path, digests: list[str]) -> None:
    """Findings of all contents, as an admission before this one would have kept them."""
    out.mkdir(parents=True)
    with (out / FINDINGS).open("w") as file:
        for digest in digests:
            finding = Finding(digest=digest, probe=PROBE, thumbnail=THUMBNAIL)
            file.write(finding.model_dump_json() + "\n")


def admitted(survey: Survey, out: Path) -> Admission:
    """The admission; decodes nothing, as every content is known."""
    return admit(
        survey.sources,
        video=TABLE.video,
        windows={stage.name: (stage.frames, stage.strides) for stage in TABLE.stages},
        left_out=survey.left_out,
        out=out,
    )


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What the call returns, and its CPU-seconds: a machine that others use too counts no less."""
    began = time.process_time()
    value = call()
    return value, time.process_time() - began


def measure(videos: int, folder: Path) -> list[float]:
    """CPU-seconds of the four parts."""
    videos_folder, out = folder / "videos", folder / "out"
    digests = make_folder(videos_folder, videos)
    keep_findings(out, digests)
    kept = out / "digests.json"
    survey_folder(videos_folder, digests=kept)
    survey, looking = timed(lambda: survey_folder(videos_folder, digests=kept))
    _, assessing = timed(lambda: admitted(survey, out))
    admission, reading = timed(lambda: read_admission(out))
    assert admission is not None, "nothing stands in the way of training"
    assert admission.accepted == videos, "every video is admitted"
    storage = LocalStorage(folder / "store")
    _, planning = timed(lambda: plan_units(admission.clips, storage, clips_per_shard=64))
    return [looking, assessing, reading, planning]


def main() -> None:
    """Prints a line per number of videos."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--videos", type=int, nargs="+", default=[1000, 10_000, 100_000])
    sys.stdout.write(f"{processor()}; CPU-seconds per 1,000 videos\n")
    heads = ("videos", "folder", "admission", "report read", "shards planned", "all", "peak MiB")
    sys.stdout.write("".join(f"{head:>16}" for head in heads) + "\n")
    for videos in sorted(parser.parse_args().videos):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            seconds = measure(videos, Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        each = [part / videos * 1000 for part in (*seconds, sum(seconds))]
        cells = "".join(f"{part:16.3f}" for part in each)
        sys.stdout.write(f"{videos:16,}{cells}{peak:16,}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
