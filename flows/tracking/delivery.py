"""How one MLflow run is brought up to date: what it says of itself, and its journal's lines."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videoldm_core.system.journal_reader import JournalReader, Line

if TYPE_CHECKING:
    from flows.tracking.tracked_runs import Telling

BATCH = 900  # metrics in one request; MLflow takes 1000
PARAMS = 100  # parameters in one request, likewise


def describe(client: Any, run_id: str, telling: "Telling") -> None:
    """Delivers everything but the journal: parameters, tags, worth, artifacts and status."""
    from mlflow.entities import Metric, Param, RunTag

    now_ms = int((telling.ended or telling.started) * 1000)
    told = set(client.get_run(run_id).data.params)  # parameters of a run cannot change
    params = [Param(_legal(k), v) for k, v in telling.params.items() if _legal(k) not in told]
    for start in range(0, len(params), PARAMS):
        client.log_batch(run_id, params=params[start : start + PARAMS])
    client.log_batch(
        run_id,
        metrics=[Metric(_legal(key), value, now_ms, 0) for key, value in telling.metrics.items()],
        tags=[RunTag(_legal(key), value) for key, value in telling.tags.items()],
    )
    for path in telling.artifacts:
        if path.exists():
            client.log_artifact(run_id, str(path))
    if telling.status == "RUNNING":
        client.update_run(run_id, status="RUNNING")
    else:
        client.set_terminated(run_id, status=telling.status, end_time=now_ms)


def batches(reader: JournalReader) -> Iterator[list[Line]]:
    """Lines in portions that fit one request; `reader.offset` is behind the portion just given."""
    lines: list[Line] = []
    size = 0
    for line in reader.new_lines():
        lines.append(line)
        size += len(line.get("metrics", {}))
        if size > BATCH - 100:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


def log_lines(client: Any, run_id: str, folder: Path, lines: list[Line]) -> None:
    """Delivers metrics, and the pictures that the lines name relative to `folder`."""
    from mlflow.entities import Metric

    metrics = [
        Metric(_legal(name), float(value), int(line["time"] * 1000), int(line["step"]))
        for line in lines
        for name, value in line.get("metrics", {}).items()
    ]
    for start in range(0, len(metrics), BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + BATCH])
    for line in lines:
        image = folder / line["image"] if "image" in line else None
        if image and image.is_file():
            client.log_artifact(run_id, str(image), artifact_path="previews")


def _legal(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^\w./: -]", "_", name)
