"""The memory that a video of minutes takes, from its first frames to its last.

    python -m benchmarks.long_video runs/demo/steps/sample.request.json --minutes 10 --steps 1

Samples with the models of a finished run (`make demo` makes one) as its own command does, with as
many key frames as make that length, and watches this process: what it holds while each tenth of the
frames is written, and at most. Flat is that the last nine tenths take no more than the first. How
many steps a frame takes is the request's own or `--steps`; memory does not depend on it.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from benchmarks import timing
from videoldm_core.diffusion.conditioning import KeyFrames
from videoldm_core.errors import UserError
from videoldm_core.generate import frame_rate, generate
from videoldm_core.records import load_record
from videoldm_core.sampling.loading import read_release
from videoldm_core.sampling.request import Request
from videoldm_core.sampling.resume import WHAT
from videoldm_core.system.journal_reader import JournalReader

EVERY_S = 0.2
MIB = 2**20


def with_steps(request: Request, steps: int) -> Request:
    """The request with so many sampling steps, of every kind."""
    names = ("steps", "interpolation_steps", "upscale_steps")
    fewer = request.sampling.model_copy(update=dict.fromkeys(names, steps))
    return request.model_copy(update={"sampling": fewer})


def of_length(request: Request, minutes: float, out: Path) -> tuple[Request, int, float]:
    """The request for a video of at least so many minutes, its frames and their rate."""
    release = read_release(request.roles, request.stages)
    fps, per_key = frame_rate(release, request.passes), 1
    if request.passes:
        given = release.given("interpolator")
        assert isinstance(given, KeyFrames), "checked when the release was read"
        per_key = given.every**request.passes
    windows = -(-round(minutes * 60 * fps) // per_key)
    changes = {"key_frames": windows + 1, "out": out, "futures": 1}
    return request.model_copy(update=changes), windows * per_key + 1, fps


def held_bytes() -> int:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status tells no VmRSS; this benchmark needs Linux")


class Watch:
    """What this process holds, beside how many frames the journal says are done."""

    def __init__(self, journal: Path) -> None:
        self.seen: list[tuple[int, int]] = []  # frames done, bytes held
        self._journal, self._is_over = JournalReader(journal), threading.Event()
        self._done = 0
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def most_between(self, low: float, high: float) -> int:
        """Bytes held at most while [low, high) frames were done."""
        return max((held for done, held in self.seen if low <= done < high), default=0)

    def _look(self) -> None:
        while not self._is_over.wait(EVERY_S):
            self._follow()
            self.seen.append((self._done, held_bytes()))

    def _follow(self) -> None:
        for line in self._journal.new_lines():
            if line["what"] == WHAT:
                self._done = line["done"]
                sys.stderr.write(f"\r{self._done} of {line['total']} frames")


def main() -> None:
    """Samples, watches, reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("request", type=Path, help="steps/sample.request.json of a finished run")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, help="default: those of the request")
    chosen = parser.parse_args()
    timing.as_launched()
    where = timing.device()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "long.mp4"
        try:
            asked = load_record(Request, chosen.request, what="request file")
        except UserError as error:
            parser.error(str(error))
        asked = asked if chosen.steps is None else with_steps(asked, chosen.steps)
        request, frames, fps = of_length(asked, chosen.minutes, out)
        began = time.perf_counter()
        with Watch(out.with_suffix(".journal.jsonl")) as watch:
            generate(request)
        seconds, size = time.perf_counter() - began, out.stat().st_size
    sys.stdout.write(
        f"{timing.machine(where)}\n{request.key_frames} key frames, {frames} frames at {fps:g} per "
        f"second: {frames / fps / 60:.1f} minutes, made in {seconds / 60:.1f}; {size / MIB:.1f} "
        "MiB of mp4\n"
    )
    for tenth in range(10):
        held = watch.most_between(tenth * frames / 10, (tenth + 1) * frames / 10)
        sys.stdout.write(f"tenth {tenth + 1:2}: at most {held / MIB:8.1f} MiB\n")
    first = watch.most_between(0, frames / 10)
    rest = watch.most_between(frames / 10, frames + 1)
    sys.stdout.write(f"after the first tenth at most {rest / first:.3f} times what it took\n")
    if where.type == "cuda":
        peak = torch.cuda.max_memory_reserved(where)
        sys.stdout.write(f"of the accelerator at most {peak / MIB:.1f} MiB\n")


if __name__ == "__main__":
    main()
