"""The last screen of a run: did every stage prove its worth, and where is everything."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from flows.config.addresses import prefect_database
from flows.config.load import tracking_uri
from flows.config.run import RunConfig
from flows.runner.terminal import Terminal, plain

if TYPE_CHECKING:
    from videoldm_core.cascade.stage import Preset


def worth_rows(run: RunConfig, table: "Preset") -> list[dict[str, Any]]:
    """The rows that the trained stages published, in the table's order."""
    rows: list[dict[str, Any]] = []
    for stage in table.stages:
        path = run.stage_folder(stage.name) / "stage.json"
        if path.is_file():
            rows.extend(json.loads(path.read_text())["worth"])
    return rows


def beaten_texts(row: dict[str, Any]) -> list[str]:
    """What a row was measured against: "bilinear 21.34 ± 0.1", "nearest 19.02 (shown)"."""
    return [
        f"{name} {measured(mean, spread)}" + ("" if must_beat else " (shown)")
        for name, mean, spread, must_beat in row["baselines"]
    ]


def number(value: float) -> str:
    """A value with as many digits as matter."""
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3g}"


def measured(mean: float, spread: float) -> str:
    """A mean and its spread, which needs fewer digits and none when there is none."""
    return f"{number(mean)} ± {spread:.1g}" if spread else number(mean)


def show_worth(rows: list[dict[str, Any]], terminal: Terminal) -> None:
    """Prints the worth table and its verdict."""
    _show_table(rows, terminal)
    _show_verdict(rows, terminal)


def show_summary(run: RunConfig, table: "Preset", terminal: Terminal) -> None:
    """Prints the worth table, the results, the commands that open the pages, and the verdict."""
    rows = worth_rows(run, table)
    _show_table(rows, terminal)
    _show_places(run, terminal)
    _show_verdict(rows, terminal)


def _show_table(rows: list[dict[str, Any]], terminal: Terminal) -> None:
    shown = Table(title="Does every stage prove its worth?", title_justify="left", box=SIMPLE)
    for column in ("stage", "metric", "value", "must beat", ""):
        shown.add_column(column)
    for row in rows:
        shown.add_row(
            plain(row["stage"]),
            plain(f"{row['metric']} ({row['unit']})" if row["unit"] else row["metric"]),
            measured(*row["value"]),
            "\n".join(map(plain, beaten_texts(row))),
            "[green]passed[/]" if row["passed"] else "[bold red]failed[/]",
        )
    if rows:
        terminal.console.print(shown)


def _show_verdict(rows: list[dict[str, Any]], terminal: Terminal) -> None:
    """Names the stages that do not beat a baseline; they are registered all the same."""
    failed = sorted({row["stage"] for row in rows if not row["passed"]})
    if failed:
        terminal.say(f"Not worth it yet: {', '.join(failed)}.")
    elif rows:
        terminal.say(f"Every stage proves its worth: {len(rows)} of {len(rows)} claims hold.")


def _show_places(run: RunConfig, terminal: Terminal) -> None:
    places = {
        "video": run.sampled_video,
        "report": run.out / "report.html",
        "admission": run.out / "admission.html",
    }
    for name, path in places.items():
        if path.exists():
            terminal.say(f"{name + ':':<12}{path}")
    uri = tracking_uri(run)
    server = f"{_tool('mlflow')} ui --backend-store-uri {shlex.quote(uri)}"
    terminal.say(f"{'MLflow:':<12}{server if uri.startswith('sqlite:') else uri}")
    home = run.out / "prefect"
    if home.is_dir():
        named = {"PREFECT_HOME": str(home), **prefect_database(home)}
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in named.items())
        terminal.say(f"{'Prefect:':<12}{given} {_tool('prefect')} server start")


def _tool(name: str) -> str:
    """How this shell finds a program of our environment."""
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) or not beside.exists():
        return name
    inside = beside.is_relative_to(Path.cwd())
    return str(beside.relative_to(Path.cwd()) if inside else beside)
