"""Probing many videos in isolated processes, once per content: findings are kept beside the report.

A finding is what decoding showed, or why there was nothing to see; it depends on the file alone.
"""

import base64
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
from PIL import Image
from pydantic import ValidationError

from preprocessing.damage import DecodeError
from preprocessing.decode import Probe, decode_frames, probe_video
from preprocessing.isolation import Call, IsolatedError, Workers
from preprocessing.sources import Source, refusal_since
from videoldm_core.files import disk_error
from videoldm_core.records import Record

DECODER = (
    f"PyAV {av.__version__}, libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}"
)
FINDINGS = "admission.findings.jsonl"
Progress = Callable[[int, int, str], None]  # done, total, name of the video just done

_THUMBNAIL_WIDTH = 128
_TIMEOUT_S = 60.0
_SLOWEST_BYTES_PER_S = 200_000  # a two-hour film gets its hours

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


def examine_video(path: str) -> tuple[Probe, str]:
    """(facts, thumbnail) of one file; runs in a child process."""
    probe = probe_video(Path(path))
    height = max(1, min(2 * _THUMBNAIL_WIDTH, round(_THUMBNAIL_WIDTH * probe.height / probe.width)))
    middle_s = 0.4 * (probe.duration_s - probe.longest_frame_s)
    frame = decode_frames(Path(path), [max(0.0, middle_s)], height=height, width=_THUMBNAIL_WIDTH)[
        0
    ]
    jpeg = io.BytesIO()
    Image.fromarray(frame).save(jpeg, "JPEG", quality=60)
    return probe, "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()


def examine_all(
    sources: Sequence[Source], *, out: Path, workers: int, progress: Progress | None = None
) -> dict[str, Finding]:
    """A finding per digest; contents examined before, also by an interrupted run, are not again.

    Raises:
        UserError: findings cannot be written into `out`.
    """
    known = _known_findings(out / FINDINGS)
    contents: dict[str, Source] = {}
    for source in sources:
        contents.setdefault(source.digest, source)
    findings = {digest: known[digest] for digest in contents if digest in known}
    waiting = [source for digest, source in contents.items() if digest not in findings]
    done = len(findings)
    if progress and done:
        progress(done, len(contents), f"{done} examined before")
    for source, finding in _examine(waiting, workers):
        finding, is_of_content = _as_the_file_is_now(source, finding)
        findings[source.digest] = finding
        if is_of_content and finding.category not in _MAY_GO_WELL_NEXT_TIME:
            _keep(out / FINDINGS, finding)
        done += 1
        if progress:
            progress(done, len(contents), source.name)
    return findings


def _examine(sources: Sequence[Source], workers: int) -> Iterator[tuple[Source, Finding]]:
    if not sources:
        return
    calls = (
        Call((str(source.path),), _TIMEOUT_S + source.size / _SLOWEST_BYTES_PER_S)
        for source in sources
    )
    with Workers(min(workers, len(sources))) as pool:
        for index, value, error in pool.run(examine_video, calls):
            source = sources[index]
            if error is None:
                probe, thumbnail = value
                yield source, Finding(digest=source.digest, probe=probe, thumbnail=thumbnail)
            else:
                category, detail = _reason(error)
                yield source, Finding(digest=source.digest, category=category, detail=detail)


def _as_the_file_is_now(source: Source, finding: Finding) -> tuple[Finding, bool]:
    """The finding, and whether it is of the content that was digested, not of what came after."""
    refusal = refusal_since(source)
    if refusal is None:
        return finding, True
    return Finding(digest=source.digest, category=refusal.category, detail=refusal.detail), False


def _reason(error: Exception) -> tuple[str, str]:
    if isinstance(error, DecodeError):
        return error.category, error.detail
    if isinstance(error, IsolatedError):
        return "stopped", str(error)
    return "undecodable", f"{type(error).__name__}: {error}"


def _known_findings(path: Path) -> dict[str, Finding]:
    if not path.is_file():
        return {}
    known = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            finding = Finding.model_validate_json(line)
        except ValidationError:  # the torn line of a killed run, or another version's
            _log.info("skipped an unreadable line of %s", path)
            continue
        if finding.decoder == DECODER:
            known[finding.digest] = finding
    return known


def _keep(path: Path, finding: Finding) -> None:
    """Appends one line; a line break first, so that a torn line spoils no other."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n{finding.model_dump_json()}")
    except OSError as error:
        raise disk_error(path, error) from error
