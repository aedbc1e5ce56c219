"""report.html: one page of bounded size: what was made from what, at what cost, how well.

Needs no other file; a video that is too large to lie in it is linked, and shown in small. Reads
what the run left on disk; knows neither Prefect nor MLflow.
"""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.config.load import tracking_uri
from flows.config.run import RunConfig
from flows.report import charts
from flows.report.summary import beaten_texts, measured, worth_rows
from flows.report.video_preview import preview_of
from flows.runner.terminal import duration
from flows.steps.graph import Ledger, Receipt, Step
from videoldm_core.errors import UserError, reason_of
from videoldm_core.records import path_inside
from videoldm_core.system.files import PRIVATE, write_text_atomically
from videoldm_core.system.journal_reader import JournalReader
from videoldm_core.system.plain_json import read_json

if TYPE_CHECKING:
    from videoldm_core.cascade.stage import Preset

TEMPLATES = Path(__file__).parent / "templates"


def write_report(run: RunConfig, table: "Preset", steps: Sequence[Step]) -> Path:
    """Writes the page about `steps`, given each after all it needs."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"duration": duration, "beaten": beaten_texts}
    page = environment.get_template("report.html").render(_content(run, table, steps))
    path = run.out / "report.html"
    write_text_atomically(path, page, mode=PRIVATE)
    return path


def _content(run: RunConfig, table: "Preset", steps: Sequence[Step]) -> dict[str, Any]:
    ledger = Ledger(run.out)
    found = [(step, ledger.receipt(step.name)) for step in steps]
    receipts = {step.name: receipt for step, receipt in found if receipt}
    worth = worth_rows(run, table)
    names = [row.name for row in table.stages]
    return {
        "run": run,
        "graph": charts.graph(_nodes(run, steps, receipts, worth)),
        "timeline": charts.timeline(_bars(steps, receipts)),
        "steps": [(step, receipts[step.name]) for step in steps if step.name in receipts],
        "hours": sum(receipt.process_seconds for receipt in receipts.values()) / 3600,
        "seconds": sum(receipt.seconds for receipt in receipts.values()),
        "price": lambda seconds: _price(run, seconds),
        "worth": worth,
        "measured": measured,
        "failed": sorted({row["stage"] for row in worth if not row["passed"]}),
        "admission": _json(run.out / "admission.json"),
        "remarks": {name: _remark(run.stage_folder(name)) for name in names},
        "losses": {name: _curves(run.stage_folder(name)) for name in names},
        "previews": {name: _previews(run.stage_folder(name)) for name in names},
        "video": _video(run.sampled_video),
        "lineage": _lineage(run, names),
        "release": _json(run.out / "release.json"),
        "config": json.dumps(run.model_dump(mode="json"), indent=2),
        "stages": json.dumps([row.model_dump(mode="json") for row in table.stages], indent=2),
        "tracking": tracking_uri(run),
    }


def _nodes(
    run: RunConfig,
    steps: Sequence[Step],
    receipts: dict[str, Receipt],
    worth: list[dict[str, Any]],
) -> list[charts.Node]:
    return [
        charts.Node(
            name=step.name,
            title=step.title,
            needs=step.needs,
            lines=_cost_lines(run, receipts.get(step.name)),
            kind=_kind(step, worth),
        )
        for step in steps
    ]


def _cost_lines(run: RunConfig, receipt: Receipt | None) -> tuple[str, ...]:
    if receipt is None:
        return ("not made",)
    took, price = duration(receipt.seconds), _price(run, receipt.process_seconds)
    cost = f"{receipt.process_seconds / 3600:.3f} process-hours"
    return (took, cost, f"price {price}") if price else (took, cost)


def _kind(step: Step, worth: list[dict[str, Any]]) -> str:
    rows = [row["passed"] for row in worth if row["stage"] == step.name]
    if rows:
        return "passed" if all(rows) else "failed"
    return "plain"


def _price(run: RunConfig, process_seconds: float) -> str:
    price = process_seconds / 3600 * run.price_per_process_hour
    return f"{price:.4f}" if run.price_per_process_hour else ""


def _bars(steps: Sequence[Step], receipts: dict[str, Receipt]) -> list[tuple[str, float, float]]:
    """The steps of the latest command; earlier ones would leave a gap of days."""
    made = [(step.title, receipts[step.name]) for step in steps if step.name in receipts]
    made.sort(key=lambda item: item[1].started, reverse=True)
    latest: list[tuple[str, Receipt]] = []
    for title, receipt in made:
        is_near = not latest or latest[-1][1].started - receipt.started < 3600 + receipt.seconds
        if not is_near:
            break
        latest.append((title, receipt))
    first = latest[-1][1].started if latest else 0.0
    return [(title, r.started - first, r.seconds) for title, r in reversed(latest)]


def _curves(folder: Path) -> list[str]:
    """Charts of a stage's journal: the losses in one, every other held-out metric in its own.

    A step that was repeated after a restart counts once.
    """
    series: dict[str, dict[str, dict[float, float]]] = {}
    for line in JournalReader(folder / "journal.jsonl").new_lines():
        for name, value in line.get("metrics", {}).items():
            chart = "loss" if "loss" in name else name
            if chart == "loss" or name.startswith("heldout"):
                series.setdefault(chart, {}).setdefault(name, {})[line["step"]] = value
    return [
        charts.curves({name: sorted(points.items()) for name, points in curves.items()})
        for _, curves in sorted(series.items(), key=lambda item: item[0] != "loss")
    ]


def _remark(folder: Path) -> str:
    """What a stage's journal remarks at its start; "" when it remarks nothing."""
    lines = JournalReader(folder / "journal.jsonl").new_lines()
    return next((str(line["remark"]) for line in lines if "remark" in line), "")


def _previews(folder: Path) -> list[dict[str, str]]:
    """The latest picture of every name in the stage's journal."""
    latest: dict[str, dict[str, str]] = {}
    for line in JournalReader(folder / "journal.jsonl").new_lines():
        if _is_picture(folder, line.get("image")):
            name = str(line.get("name", line["image"]))
            caption = f"{name}, step {line['step']}" if "step" in line else name
            picture = _data_uri(folder / line["image"], "image/png")
            latest[name] = {"caption": caption, "uri": picture}
    return list(latest.values())


def _is_picture(folder: Path, name: object) -> bool:
    """Whether a journal names a file of its own stage."""
    try:
        return isinstance(name, str) and (folder / path_inside(name)).is_file()
    except ValueError:
        return False


def _lineage(run: RunConfig, names: list[str]) -> list[dict[str, Any]]:
    release = _json(run.out / "release.json") or {"stages": {}}
    rows = []
    for name in names:
        published = _json(run.stage_folder(name) / "stage.json")
        pin = release["stages"].get(name)
        if published and pin:
            rows.append({"stage": name, "published": published, "pin": pin})
    return rows


def _video(path: Path) -> dict[str, Any] | None:
    """What the page shows of the sampled video; None: there is none."""
    preview = preview_of(path)
    return preview and {
        "film": _uri(preview.film, "video/mp4") if preview.film else "",
        "stills": [_uri(still, "image/png") for still in preview.stills],
        "preview": preview,
        "link": path.name,  # it lies beside the page
    }


def _json(path: Path) -> dict[str, Any] | None:
    """What a JSON file of the run holds; None: it is not there yet.

    Raises:
        UserError: it was damaged.
    """
    try:
        return read_json(path) if path.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot read {str(path)!r} ({reason_of(error)}); delete it and run the same command "
            "again."
        ) from None


def _data_uri(path: Path, kind: str) -> str:
    return _uri(path.read_bytes(), kind) if path.is_file() else ""


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
