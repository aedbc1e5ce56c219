"""What MLflow should know about a run, and its delivery: training never waits for the server.

What is to be told is written down first (mlflow_runs.json, journals); delivering it is done as
often as needed, until the server has everything. Metric values come from the journals that the
training commands write.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.config.addresses import sqlite_address, without_folders_as_encoded
from flows.runner.telemetry import silence_mlflow
from flows.tracking.delivery import batches, describe, log_lines
from flows.tracking.experiment import experiment_id, has_run
from flows.tracking.tracked_runs import Status, Telling, load_tellings, store_tellings
from videoldm_core.errors import without_secrets
from videoldm_core.system.files import append_private
from videoldm_core.system.journal_reader import JournalReader, first_line

CASCADE = "cascade"
OWN = "mlflow.db"  # of the run's folder, where no server is named
RETRY_S = 20.0


class Tracker:
    """Keeps what is to be told, and delivers it from a thread of its own.

    Raises:
        UserError: what an earlier command kept in mlflow_runs.json cannot be read.
    """

    def __init__(self, *, uri: str, experiment: str, out: Path) -> None:
        self.uri = uri
        self.experiment = experiment
        self.out = out
        self.problem: str | None = None  # why the last delivery failed
        self._is_own = uri == sqlite_address(out / OWN)
        self._tellings = load_tellings(out, uri)
        self._lock = threading.RLock()
        self._delivering = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(
        self,
        name: str,
        *,
        params: dict[str, Any],
        tags: dict[str, str],
        journal: Path | None = None,
    ) -> None:
        """A run starts or goes on: the same MLflow run while its journal is the one it had."""
        with self._lock:
            known = self._tellings.runs.get(name)
            goes_on = known is not None and (name == CASCADE or _same_attempt(known, journal))
            telling = (
                known
                if goes_on and known
                else Telling(name=name, started=time.time(), journal=journal)
            )
            texts = {key: str(value)[:5000] for key, value in params.items()}
            changes = {"params": {**texts, **telling.params}, "tags": {**telling.tags, **tags}}
            self._put(telling.model_copy(update={**changes, "status": "RUNNING", "ended": None}))

    def add(self, name: str, **changes: Any) -> None:
        """Adds tags, metrics or artifacts to a run."""
        with self._lock:
            telling = self._tellings.runs[name]
            merged = {key: _joined(getattr(telling, key), value) for key, value in changes.items()}
            self._put(telling.model_copy(update=merged))

    def end(self, name: str, status: Status) -> None:
        """A run has ended; the rest of its journal is delivered when the server answers."""
        with self._lock:
            self._put(
                self._tellings.runs[name].model_copy(
                    update={"status": status, "ended": time.time()}
                )
            )

    def knows(self, name: str) -> bool:
        """Whether there is anything to tell about a run."""
        return name in self._tellings.runs

    def run_id(self, name: str) -> str | None:
        """MLflow's id of a run; None until it was first delivered."""
        telling = self._tellings.runs.get(name)
        return telling.run_id if telling else None

    def start_delivering(self, every_s: float = 5.0) -> None:
        """Delivers in the background until `close`."""
        self._thread = threading.Thread(
            target=self._deliver_regularly, args=(every_s,), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Delivers what is left, once; what the server does not take is for the next command."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        self.deliver()

    def is_all_delivered(self) -> bool:
        """Whether the server has everything that was told so far."""
        return all(_is_delivered(telling) for telling in self._tellings.runs.values())

    def deliver(self) -> bool:
        """Brings the server up to date; False when it did not take all: `problem` says why."""
        with self.client_or_none() as client:
            if client is not None:
                self._enter_experiment(client)
                names = sorted(self._tellings.runs, key=lambda name: name != CASCADE)
                for name in names:
                    if not _is_delivered(self._tellings.runs[name]):
                        self._deliver_run(client, name)
                self.problem = None
                return True
        return False

    @contextlib.contextmanager
    def client_or_none(self) -> Iterator[Any]:
        """MLflow's client, for one caller at a time; what goes wrong becomes `problem`."""
        silence_mlflow()
        with self._delivering, without_folders_as_encoded(self.uri):
            from mlflow.tracking import MlflowClient

            try:
                if self._is_own:  # SQLite would make it for everybody
                    append_private(self.out / OWN).close()
                client = MlflowClient(self.uri, registry_uri=self.uri)
            except Exception as error:  # whatever its drivers raise: training never waits for it
                self.problem = _sentence(error)
                yield None
                return
            try:
                yield client
            except AssertionError:
                raise
            except Exception as error:  # of a database, an artifact store, or a full disk
                self.problem = _sentence(error)

    def _deliver_regularly(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            if not self.deliver():
                self._stop.wait(RETRY_S)

    def _deliver_run(self, client: Any, name: str) -> None:
        run_id = self._known_run(client, name) or self._create_run(client, name)
        telling = self._tellings.runs[name]
        if telling.told != _content(telling):
            describe(client, run_id, telling)
            self._remember(telling, told=_content(telling))
        if telling.journal:
            reader = JournalReader(telling.journal, telling.offset)
            for lines in batches(reader):
                log_lines(client, run_id, telling.journal.parent, lines)
                self._remember(telling, offset=reader.offset)

    def _known_run(self, client: Any, name: str) -> str | None:
        """The run's id, if the server still has it; what it has forgotten is told anew."""
        run_id = self._tellings.runs[name].run_id
        if run_id is None or has_run(client, run_id, name):
            return run_id
        with self._lock:
            self._put(self._tellings.runs[name].untold())
        return None

    def _create_run(self, client: Any, name: str) -> str:
        telling = self._tellings.runs[name]
        parent = self.run_id(CASCADE) if name != CASCADE else None
        run = client.create_run(
            self._tellings.experiment,
            start_time=int(telling.started * 1000),
            run_name=name,
            tags={"mlflow.parentRunId": parent} if parent else {},
        )
        self._remember(telling, run_id=run.info.run_id)
        return run.info.run_id

    def _enter_experiment(self, client: Any) -> None:
        """Finds or makes the runs' experiment; in another one than before, all is told anew."""
        is_local = self.uri.startswith("sqlite:")
        folder = self.out / "mlflow-artifacts" if is_local else None
        found = experiment_id(client, self.experiment, folder=folder, is_own=self._is_own)
        with self._lock:
            if self._tellings.experiment not in ("", found):
                self._tellings = self._tellings.untold()
            self._tellings = self._tellings.model_copy(update={"experiment": found})

    def _remember(self, delivered: Telling, **changes: Any) -> None:
        with self._lock:
            telling = self._tellings.runs[delivered.name]
            if telling.started != delivered.started:  # another attempt has begun meanwhile
                return
            attempt = telling.attempt or (first_line(telling.journal) if telling.journal else "")
            self._put(telling.model_copy(update={**changes, "attempt": attempt}))

    def _put(self, telling: Telling) -> None:
        runs = {**self._tellings.runs, telling.name: telling}
        self._tellings = self._tellings.model_copy(update={"runs": runs})
        store_tellings(self.out, self._tellings)


def _sentence(error: Exception) -> str:
    return without_secrets(" ".join(str(error).split()))[:300].rstrip(".")


def _same_attempt(telling: Telling, journal: Path | None) -> bool:
    """Whether a stage goes on where the told run stopped, rather than starting afresh."""
    if telling.attempt:
        return journal is not None and first_line(journal) == telling.attempt
    return telling.ended is None


def _content(telling: Telling) -> str:
    """What `describe` delivers, as text."""
    return telling.model_dump_json(
        include={"params", "tags", "metrics", "artifacts", "status", "ended"}
    )


def _is_delivered(telling: Telling) -> bool:
    if telling.run_id is None or telling.told != _content(telling):
        return False
    return (
        next(JournalReader(telling.journal, telling.offset).new_lines(), None) is None
        if telling.journal
        else True
    )


def _joined(old: Any, new: Any) -> Any:
    return {**old, **new} if isinstance(old, dict) else tuple(dict.fromkeys([*old, *new]))
