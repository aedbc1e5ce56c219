"""The last screen of a run: did every stage prove its worth, and where is everything."""

import json
from typing import TYPE_CHECKING, Any

from rich.table import Table

from flows.config import RunConfig, tracking_uri
from flows.terminal import Terminal

if TYPE_CHECKING:
    from videoldm_core.cascade import Preset


def worth_rows(run: RunConfig, table: "Preset") -> list[dict[str, Any]]:
    """The rows that the trained stages published, in the table's order."""
    rows: list[dict[str, Any]] = []
    for stage in table.stages:
        path = run.stage_folder(stage.name) / "stage.json"
        if path.is_file():
            rows.extend(json.loads(path.read_text())["worth"])
    return rows


def beaten_text(row: dict[str, Any]) -> str:
    """What a row was measured against: "bilinear 21.3 ± 0.1, nearest 19.0 ± 0.2 (shown)"."""
    return ", ".join(
        f"{name} {number(mean)} ± {number(spread)}" + ("" if must_beat else " (shown)")
        for name, mean, spread, must_beat in row["baselines"]
    )


def number(value: float) -> str:
    """A value with as many digits as matter."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"


def show_summary(run: RunConfig, table: "Preset", terminal: Terminal) -> None:
    """Prints the worth table, the results and the commands that open the pages."""
    rows = worth_rows(run, table)
    shown = Table(title="Does every stage prove its worth?", title_justify="left")
    for column in ("stage", "metric", "value", "must beat", ""):
        shown.add_column(column)
    for row in rows:
        mean, spread = row["value"]
        shown.add_row(
            row["stage"],
            f"{row['metric']} ({row['unit']})" if row["unit"] else row["metric"],
            f"{number(mean)} ± {number(spread)}",
            beaten_text(row),
            "[green]passed[/]" if row["passed"] else "[bold red]failed[/]",
        )
    if rows:
        terminal.console.print(shown)
    failed = sorted({row["stage"] for row in rows if not row["passed"]})
    if failed:
        terminal.say(f"Not worth it yet: {', '.join(failed)}.")
    _show_places(run, terminal)


def _show_places(run: RunConfig, terminal: Terminal) -> None:
    places = {
        "video": run.out / "video.mp4",
        "report": run.out / "report.html",
        "admission": run.out / "admission.html",
    }
    for name, path in places.items():
        if path.exists():
            terminal.say(f"{name + ':':<12}{path}")
    uri = tracking_uri(run)
    server = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else uri
    terminal.say(f"{'MLflow:':<12}{server}")
    terminal.say(f"{'Prefect:':<12}PREFECT_HOME={run.out / 'prefect'} prefect server start")
