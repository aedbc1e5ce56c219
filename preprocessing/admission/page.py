"""The admission report as one HTML page that opens from disk; decides nothing."""

from collections.abc import Iterable, Mapping, Sized
from html import escape
from pathlib import Path

from preprocessing.admission.record import Admission, StageReport, VideoReport
from preprocessing.sources.names import printable
from videoldm_core.system.files import write_text_atomically

_MOST_SHOWN = 500  # rows of a table; all of them are in admission.json
_MOST_OF_TEXT = 300  # characters of a caption or a reason

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: #888; --bad: #c62828; --good: #2e7d32 }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100% }
th { text-align: left; font-weight: 600; color: var(--quiet); font-size: .85rem }
th, td { padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
td.name { overflow-wrap: anywhere; min-width: 12rem; max-width: 22rem }
img { width: 128px; border-radius: 4px; display: block }
.numbers { display: flex; gap: 2.5rem; flex-wrap: wrap; margin: 1.2rem 0 }
.numbers b { display: block; font-size: 1.7rem; font-weight: 600 }
.quiet { color: var(--quiet) } .bad { color: var(--bad) } .good { color: var(--good) }
.problem { border-left: 4px solid var(--bad); padding: .6rem 1rem; background: #c6282814 }
ul { margin: 0; padding-left: 1.1rem }
"""


def write_page(path: Path, admission: Admission, thumbnails: Mapping[str, str]) -> None:
    """Writes the page.

    Args:
        thumbnails: digest -> data URI.
    """
    body = "\n".join(
        [
            "<h1>Which videos are used</h1>",
            _problem(admission),
            _numbers(admission),
            _stages(admission),
            _refused(admission),
            _left_out(admission),
            _accepted(admission, thumbnails),
        ]
    )
    write_text_atomically(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<title>Admission report</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n",
    )


def _problem(admission: Admission) -> str:
    return f'<p class="problem">{escape(admission.problem)}.</p>' if admission.problem else ""


def _numbers(admission: Admission) -> str:
    settings = admission.settings
    numbers = [
        (f"{admission.accepted}", "videos accepted"),
        (f"{admission.refused}", "refused"),
        (f"{admission.seconds / 60:.1f}", "minutes accepted"),
        (f"{admission.train_clips}", "training clips"),
        (f"{admission.heldout_clips}", "held-out clips"),
        (f"{admission.captioned}", "videos with a caption"),
        (f"{admission.without_caption}", "without a caption"),
    ]
    shown = "".join(f"<div><b>{number}</b>{label}</div>" for number, label in numbers)
    large = f"{settings.width * settings.upscale}x{settings.height * settings.upscale}"
    return (
        f'<div class="numbers">{shown}</div>'
        f"<p>Clips of up to {settings.clip_seconds:g} s at {settings.fps:g} frames/s, "
        f"{settings.width}x{settings.height} pixels ({large} for the upscalers). "
        f"Held out: {escape(admission.split_rule)}.</p>"
        f'<p class="quiet">Every frame was decoded ({escape(admission.decoder)}); '
        "numbers are of decoded frames, not of headers.</p>"
    )


def _stages(admission: Admission) -> str:
    rows = [_stage(stage, admission.accepted) for stage in admission.stages]
    return "<h2>What each stage will see</h2>" + _table(
        [
            "stage",
            "#frames",
            "#stride",
            "#needs",
            "#training windows",
            "#held-out windows",
            "#videos",
        ],
        rows,
    )


def _stage(stage: StageReport, accepted: int) -> list[str]:
    def counts(windows: Iterable[int]) -> str:
        return " + ".join(
            f"{count:,}" if count else '<span class="bad">none</span>' for count in windows
        )

    return [
        escape(stage.name),
        str(stage.frames),
        ", ".join(map(str, stage.strides)),
        _needs(stage),
        counts(stage.train_windows),
        counts(stage.heldout_windows),
        f"{stage.videos} of {accepted}",
    ]


def _needs(stage: StageReport) -> str:
    if stage.needs_boxes:
        return "boxes"
    rate = f" of {stage.needs_fps:.4g} frames/s" if stage.needs_fps else ""
    return f"{stage.needs_s:.2f} s{rate}"


def _refused(admission: Admission) -> str:
    videos = [video for video in admission.videos if not video.is_accepted]
    if not videos:
        return ""
    rows = [
        [
            _text(video.name),
            f'<span class="bad">{_text(video.reason)}</span>',
            f"{video.size / 1000:,.1f} kB",
        ]
        for video in videos[:_MOST_SHOWN]
    ]
    return (
        f"<h2>Refused ({len(videos)})</h2>"
        + _table(["*video", "reason", "#size"], rows)
        + _more(videos)
    )


def _left_out(admission: Admission) -> str:
    """What else lies in the folder."""
    left = admission.left_out
    remarks = "".join(f"<li>{_text(remark)}</li>" for remark in left.remarks[:_MOST_SHOWN])
    parts = [f"<ul>{remarks}</ul>{_more(left.remarks)}"] if remarks else []
    if left.passed_over:
        rows = [[_text(it.name), _text(it.reason)] for it in left.passed_over[:_MOST_SHOWN]]
        parts.append(_table(["*passed over", "reason"], rows) + _more(left.passed_over))
    if left.files:
        counts = ", ".join(f"{count:,} {_text(kind)}" for kind, count in left.files.items())
        parts.append(f"<p>Files that are not looked at: {counts}.</p>")
    return "<h2>What else is in the folder</h2>" + "".join(parts) if parts else ""


def _accepted(admission: Admission, thumbnails: Mapping[str, str]) -> str:
    videos = [video for video in admission.videos if video.is_accepted]
    if not videos:
        return ""
    return (
        f"<h2>Accepted ({len(videos)})</h2>"
        + _table(
            ["", "*video", "#length", "#rate", "size", "#clips", "split", "to know"],
            [_video(video, thumbnails.get(video.digest, "")) for video in videos[:_MOST_SHOWN]],
        )
        + _more(videos)
    )


def _more(rows: Sized) -> str:
    rest = len(rows) - _MOST_SHOWN
    return f'<p class="quiet">and {rest:,} more in admission.json</p>' if rest > 0 else ""


def _text(words: str) -> str:
    """Somebody else's words as HTML: short, on one line, and turning no other text around."""
    words = printable(words)
    shown = words if len(words) <= _MOST_OF_TEXT else words[: _MOST_OF_TEXT - 1] + "…"
    return f"<bdi>{escape(shown)}</bdi>"


def _video(video: VideoReport, thumbnail: str) -> list[str]:
    probe = video.probe
    assert probe is not None, "an accepted video was probed"
    notes = [_text(note) for note in video.notes]
    for reason, stages in (
        ("too short", video.unseen_by),
        (f"too slow ({probe.mean_fps:.3g} frames/s)", video.too_slow_for),
        ("without boxes", video.without_boxes_for),
    ):
        if stages:
            notes.append(f'<span class="bad">{reason} for {escape(", ".join(stages))}</span>')
    listed = "".join(f"<li>{note}</li>" for note in notes)
    caption = f'<div class="quiet">{_text(video.caption)}</div>' if video.caption else ""
    return [
        f'<img src="{escape(thumbnail)}" alt="">' if thumbnail else "",
        _text(video.name) + caption,
        f"{probe.duration_s:.2f} s",
        f"{probe.fps:.3g}{' (varies)' if probe.variable_rate else ''}",
        f"{probe.width}x{probe.height} {_text(probe.codec)}",
        str(video.clips),
        {"heldout": "held out", "train": "training"}.get(video.split, video.split),
        f"<ul>{listed}</ul>" if listed else "",
    ]


def _table(heads: list[str], rows: list[list[str]]) -> str:
    """A table of HTML cells; a head with # is for a column of numbers, with * for long names."""
    kinds = {"#": ' class="n"', "*": ' class="name"'}
    classes = [kinds.get(head[:1], "") for head in heads]
    head_cells = "".join(
        f"<th{kind}>{head.lstrip('#*')}</th>" for head, kind in zip(heads, classes, strict=True)
    )
    lines = [
        "<tr>"
        + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, classes, strict=True))
        + "</tr>"
        for row in rows
    ]
    return (
        f"<table><thead><tr>{head_cells}</tr></thead>\n<tbody>"
        + "\n".join(lines)
        + "</tbody></table>"
    )
