"""Probing many videos in isolated processes, once per content: findings are kept beside the report.

A finding is what decoding showed, or why there was nothing to see; it depends on the file alone.
"""

import base64
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from pydantic import ValidationError

from preprocessing.encoding.recode import earning
from preprocessing.isolation import child
from preprocessing.isolation.answers import Cause
from preprocessing.isolation.workers import Call, IsolatedError, Workers
from preprocessing.sources.folder import Source, refusal_since
from preprocessing.sources.names import printable
from preprocessing.video.damage import DecodeError
from preprocessing.video.decode import Probe, decode_frames, probe_video
from preprocessing.video.decoding_limits import MOST_CPU_HOURS, decoding_limits
from preprocessing.video.plausible import RULES, Timeline, why_implausible
from videoldm_core.records import Record
from videoldm_core.system.files import disk_error

DECODER = (
    f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"
)
FINDINGS = "admission.findings.jsonl"
Progress = Callable[[int, int, str], None]  # done, total, name of the video just done

_THUMBNAIL_WIDTH = 128
_MOST_THUMBNAIL_BYTES = 64 * 1024
_JPEG = bytes.fromhex("ffd8ff")
# Of calls without a finding of their own, by what ended them. What used up its processor time would
# do so again; all others are "stopped", and are tried again in the next run.
_CATEGORIES: dict[Cause, str] = {
    "raised": "undecodable",
    "idle": "too long to decode",
    "total": "too long to decode",
}

_MAY_GO_WELL_NEXT_TIME = ("stopped", "gone", "unreadable")  # by a limit, or not of the content

_log = logging.getLogger(__name__)


class Finding(Record):
    """What examining one content led to."""

    digest: str
    decoder: str = DECODER
    probe: Probe | None = None
    thumbnail: str = ""  # data URI of a small JPEG
    category: str = ""  # why there is no probe, in a word or two
    detail: str = ""
    cpu_hours: float | None = None  # of processor time, that were not enough to decode it
    rules: int = 1  # under which it was kept; lines of the first do not say so


def examine_video(progress: child.Progress, path: str) -> child.Answer:
    """Facts and the JPEG of a thumbnail of one file; runs in a child process."""
    on_frame = earning(progress)
    probe = probe_video(Path(path), on_frame)
    height = max(1, min(2 * _THUMBNAIL_WIDTH, round(_THUMBNAIL_WIDTH * probe.height / probe.width)))
    middle_s = max(0.0, 0.4 * (probe.duration_s - probe.longest_frame_s))
    (frame,) = decode_frames(
        Path(path), [middle_s], height=height, width=_THUMBNAIL_WIDTH, on_frame=on_frame
    )
    jpeg = io.BytesIO()
    Image.fromarray(frame).save(jpeg, "JPEG", quality=60)
    content = jpeg.getvalue()
    return child.Answer(probe.model_dump(mode="json"), len(content), [content])


def examine_call(source: Source, limits: child.Limits) -> Call:
    """The call of `examine_video` whose value is (probe, data URI of the thumbnail)."""

    def read(facts: Any, content: np.ndarray) -> tuple[Probe, str]:
        jpeg, probe = content.tobytes(), Probe.model_validate(facts)
        timeline = Timeline(probe.frames, probe.duration_s, probe.longest_frame_s)
        if reason := why_implausible(timeline, size=source.size):
            raise ValueError(reason)
        if not jpeg.startswith(_JPEG):
            raise ValueError("no JPEG")
        return probe, "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()

    return Call((str(source.path),), limits, _MOST_THUMBNAIL_BYTES, read)


def examine_all(
    sources: Sequence[Source],
    *,
    out: Path,
    workers: int,
    cpu_hours: float = MOST_CPU_HOURS,
    progress: Progress | None = None,
) -> dict[str, Finding]:
    """A finding per digest; contents examined before, also by an interrupted run, are not again.

    Args:
        cpu_hours: of processor time, that decoding one video may take.

    Raises:
        UserError: findings cannot be written into `out`.
    """
    known = _known_findings(out / FINDINGS, cpu_hours)
    contents: dict[str, Source] = {}
    for source in sources:
        contents.setdefault(source.digest, source)
    findings = {digest: known[digest] for digest in contents if digest in known}
    waiting = [source for digest, source in contents.items() if digest not in findings]
    done = len(findings)
    if progress and done:
        progress(done, len(contents), f"{done} examined before")
    for source, finding in _examine(waiting, workers, cpu_hours):
        finding, is_of_content = _as_the_file_is_now(source, finding)
        findings[source.digest] = finding
        if is_of_content and finding.category not in _MAY_GO_WELL_NEXT_TIME:
            _keep(out / FINDINGS, finding)
        done += 1
        if progress:
            progress(done, len(contents), source.name)
    return findings


def _examine(
    sources: Sequence[Source], workers: int, cpu_hours: float
) -> Iterator[tuple[Source, Finding]]:
    if not sources:
        return
    limits = decoding_limits(cpu_hours)
    calls = (examine_call(source, limits) for source in sources)
    with Workers(min(workers, len(sources)), errors=(DecodeError,)) as pool:
        for index, value, error in pool.run(examine_video, calls):
            source = sources[index]
            if error is None:
                probe, thumbnail = value
                yield source, Finding(digest=source.digest, probe=probe, thumbnail=thumbnail)
            else:
                yield source, _refusal(source.digest, error, cpu_hours)
        if pool.network:
            _log.info("decoding children can reach the network: %s", pool.network)


def _as_the_file_is_now(source: Source, finding: Finding) -> tuple[Finding, bool]:
    """The finding, and whether it is of the content that was digested, not of what came after."""
    refusal = refusal_since(source)
    if refusal is None:
        return finding, True
    return Finding(digest=source.digest, category=refusal.category, detail=refusal.detail), False


def _refusal(digest: str, error: Exception, cpu_hours: float) -> Finding:
    if isinstance(error, DecodeError):
        return Finding(digest=digest, category=error.category, detail=printable(error.detail))
    cause = error.cause if isinstance(error, IsolatedError) else "raised"
    said, allowed = str(error), None
    if cause == "total":
        said, allowed = f"{said}; set decode_cpu_hours to more than {cpu_hours:g}", cpu_hours
    category = _CATEGORIES.get(cause, "stopped")
    return Finding(digest=digest, category=category, detail=printable(said), cpu_hours=allowed)


def _known_findings(path: Path, cpu_hours: float) -> dict[str, Finding]:
    if not path.is_file():
        return {}
    known = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                finding = Finding.model_validate_json(line)
            except ValidationError:  # the torn line of a killed run, or another version's
                _log.info("skipped an unreadable line of %r", str(path))
                continue
            may_be_enough_now = finding.cpu_hours is not None and finding.cpu_hours < cpu_hours
            is_of_today = (finding.decoder, finding.rules) == (DECODER, RULES)
            if is_of_today and not may_be_enough_now:
                known[finding.digest] = finding
    return known


def _keep(path: Path, finding: Finding) -> None:
    """Appends one line; a line break first, so that a torn line spoils no other."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            kept = finding.model_copy(update={"rules": RULES})
            file.write(f"\n{kept.model_dump_json()}")
    except OSError as error:
        raise disk_error(path, error) from error
