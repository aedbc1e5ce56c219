"""Before anything is encoded: which videos are used, which are refused and why, who will see what.

Everything follows from decoded frames. A broken video is listed with its reason and costs nothing
else. Knows no networks and no stores.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.admission.clips import (
    Clip,
    cut_clips,
    frames_in,
    hold_out,
    window_frames,
    with_boxes_in_crop,
)
from preprocessing.admission.examine import DECODER, Finding, Progress, examine_all
from preprocessing.admission.page import write_page
from preprocessing.admission.record import (
    PAGE_FILE,
    RECORD_FILE,
    Admission,
    Settings,
    VideoReport,
    Window,
)
from preprocessing.admission.stages import needed_fps, problem_of, stage_report, unseen_by
from preprocessing.sources.captions import FORMS
from preprocessing.sources.folder import NOTHING_ELSE, LeftOut, Source
from preprocessing.sources.names import printable, written_name
from preprocessing.video.decode import Probe
from preprocessing.video.decoding_limits import MOST_CPU_HOURS
from preprocessing.video.plausible import why_too_still
from videoldm_core.errors import UserError
from videoldm_core.system.files import write_text_atomically

if TYPE_CHECKING:
    from videoldm_core.cascade.stage import VideoFormat


def admit(  # noqa: PLR0913 - one call site; what is admitted, for whom, and where it is told
    sources: Sequence[Source],
    *,
    video: "VideoFormat",
    windows: Mapping[str, Window],
    boxed: Collection[str] = (),
    left_out: LeftOut = NOTHING_ELSE,
    out: Path,
    workers: int = 1,
    cpu_hours: float = MOST_CPU_HOURS,
    progress: Progress | None = None,
) -> Admission:
    """Examines every video, cuts clips, and writes admission.json, then admission.html, into `out`.

    Args:
        windows: stage name -> (frames, strides).
        boxed: stages of these that see single frames with boxes and no other.
        left_out: what lies beside the videos, for the report.
        workers: child processes that decode side by side.
        cpu_hours: of processor time, that decoding one video may take.
        progress: called with (done, total, name) after every video.

    Raises:
        UserError: no video can be used, or some stage would have nothing to train or be judged on.
    """
    settings = Settings(
        fps=video.fps,
        height=video.height,
        width=video.width,
        upscale=video.upscale,
        clip_seconds=video.clip_seconds,
        deinterlace=video.deinterlace,
        windows={name: (frames, tuple(strides)) for name, (frames, strides) in windows.items()},
        boxed=tuple(sorted(boxed)),
    )
    _check_clips_hold_windows(settings)
    readable = [source for source in sources if source.refusal is None]
    findings = examine_all(
        readable, out=out, workers=workers, cpu_hours=cpu_hours, progress=progress
    )
    admission = _assess(sources, findings, settings)
    admission = admission.model_copy(
        update={"problem": problem_of(admission), "left_out": left_out}
    )
    write_text_atomically(out / RECORD_FILE, admission.model_dump_json(indent=1) + "\n")
    write_page(
        out / PAGE_FILE, admission, {key: found.thumbnail for key, found in findings.items()}
    )
    if admission.problem:
        raise UserError(f"{admission.problem} (see {str(out / PAGE_FILE)!r}).")
    return admission


def remarks_on(admission: Admission) -> list[str]:
    """What somebody who does not open the report should know; sentences without a full stop."""
    remarks = []
    missing, accepted = admission.without_caption, admission.accepted
    if missing:
        remarks.append(
            f"{missing} of {accepted} videos have no caption (captions are read from {FORMS})"
        )
    passed = [found for found in admission.left_out.passed_over if not found.is_hidden]
    if passed:
        others = f" and {len(passed) - 1} others" if len(passed) > 1 else ""
        remarks.append(f"{passed[0].name!r}{others} passed over: {passed[0].reason}")
    for said in admission.left_out.remarks[:1]:
        others = len(admission.left_out.remarks) - 1
        remarks.append(said + (f" (and {others} other remarks in {PAGE_FILE})" if others else ""))
    return remarks


def _check_clips_hold_windows(settings: Settings) -> None:
    """Refuses, before anything is decoded, clips that are cut shorter than a stage reads."""
    clip_frames = round(settings.clip_seconds * settings.fps)
    for name, (frames, strides) in settings.windows.items():
        needed = window_frames(frames, max(strides))
        if needed > clip_frames:
            raise UserError(
                f"Clips are cut to {settings.clip_seconds:g} s, but stage {name!r} reads "
                f"{frames} frames at stride {max(strides)}, that is {needed / settings.fps:.2f} s "
                f"at {settings.fps:g} frames/s; set video.clip_seconds to at least "
                f"{needed / settings.fps:.2f}."
            )


def _assess(
    sources: Sequence[Source], findings: Mapping[str, Finding], settings: Settings
) -> Admission:
    """Everything that follows from the findings; pure arithmetic."""
    spans = [
        window_frames(frames, stride)
        for frames, strides in settings.windows.values()
        for stride in strides
    ]
    refusals = _refusals(sources, findings, settings, min_frames=min(spans))
    accepted = [
        (source, probe)
        for source in sources
        if source.name not in refusals and (probe := findings[source.digest].probe)
    ]
    held = hold_out(
        accepted,
        fps=settings.fps,
        longest_window=max(spans),
        needed_fps=max(needed_fps(settings, name) for name in settings.windows),
    )
    clips = {
        source.name: cut_clips(
            with_boxes_in_crop(source, probe, height=settings.height, width=settings.width),
            probe,
            fps=settings.fps,
            clip_seconds=settings.clip_seconds,
            min_frames=min(spans),
            held=held,
        )
        for source, probe in accepted
    }
    all_clips = tuple(clip for of_video in clips.values() for clip in of_video)
    reports = []
    for source in sources:
        finding = findings.get(source.digest)
        if source.name in refusals:
            reports.append(_refused(source, refusals[source.name], finding))
        elif finding and finding.probe:
            reports.append(_accepted(source, finding.probe, clips[source.name], settings))
    return Admission(
        decoder=DECODER,
        settings=settings,
        split_rule=held.rule,
        accepted=len(accepted),
        refused=len(refusals),
        captioned=sum(bool(source.caption) for source, _ in accepted),
        seconds=sum(probe.duration_s for _, probe in accepted),
        train_clips=sum(clip.split == "train" for clip in all_clips),
        heldout_clips=sum(clip.split == "heldout" for clip in all_clips),
        stages=tuple(stage_report(name, all_clips, settings) for name in settings.windows),
        videos=tuple(reports),
        clips=all_clips,
    )


def _refusals(
    sources: Sequence[Source],
    findings: Mapping[str, Finding],
    settings: Settings,
    *,
    min_frames: int,
) -> dict[str, tuple[str, str]]:
    """(category, detail) by name, for the videos that are not used."""
    refusals: dict[str, tuple[str, str]] = {}
    first_of: dict[str, str] = {}
    for source in sources:
        if source.refusal:
            refusals[source.name] = source.refusal
            continue
        finding = findings[source.digest]
        if finding.probe is None:
            refusals[source.name] = finding.category, finding.detail
        elif frames_in(finding.probe.duration_s, settings.fps) < min_frames:
            refusals[source.name] = (
                "too short",
                f"it lasts {finding.probe.duration_s:.2f} s, the shortest window of any stage "
                f"{min_frames / settings.fps:.2f} s",
            )
        elif still := _why_too_still(finding.probe, settings):
            refusals[source.name] = "too still", still
        elif source.digest in first_of:
            refusals[source.name] = "duplicate", f"the same bytes as {first_of[source.digest]!r}"
        first_of.setdefault(source.digest, source.name)
    return refusals


def _why_too_still(probe: Probe, settings: Settings) -> str:
    return why_too_still(
        frames=probe.frames, duration_s=probe.duration_s, clip_seconds=settings.clip_seconds
    )


def _refused(source: Source, why: tuple[str, str], finding: Finding | None) -> VideoReport:
    return VideoReport(
        **_identity(source),
        is_accepted=False,
        category=why[0],
        reason=printable(f"{why[0]}: {why[1]}"),
        probe=finding.probe if finding else None,
    )


def _accepted(
    source: Source, probe: Probe, clips: Sequence[Clip], settings: Settings
) -> VideoReport:
    notes = [*probe.warnings, *_field_notes(probe, settings), *source.notes]
    height, width = settings.height * settings.upscale, settings.width * settings.upscale
    if probe.height < height or probe.width < width:
        notes.append(
            f"its {probe.width}x{probe.height} pixels are enlarged to {width}x{height} for the "
            "upscalers"
        )
    if source.labels:
        labels = ", ".join(f"{name} {value}" for name, value in sorted(source.labels.items()))
        notes.append(f"labels: {labels}")
    if source.frames:
        used = sum(len(clip.boxes) for clip in clips)
        notes.append(f"boxes in {len(source.frames)} frames, {used} of them frames of clips")
    return VideoReport(
        **_identity(source),
        is_accepted=True,
        probe=probe,
        notes=tuple(notes),
        **unseen_by(clips, settings),
        clips=len(clips),
        split="both" if len({clip.split for clip in clips}) > 1 else clips[0].split,
    )


def _field_notes(probe: Probe, settings: Settings) -> Iterator[str]:
    if probe.scan != "progressive":
        first = {"tff": "top", "bff": "bottom"}[probe.scan]
        made = f"deinterlaced ({settings.deinterlace})"
        done = "not deinterlaced, as set" if settings.deinterlace == "none" else made
        yield f"interlaced, {first} field first: {done}"


def _identity(source: Source) -> dict[str, Any]:
    kept = {"name", "digest", "size", "caption"}
    return {**source.model_dump(include=kept), "path": written_name(source.path)}
