"""What MLflow should know, as it is kept in the run's folder until it has been delivered."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from videoldm_core.errors import UserError
from videoldm_core.records import Record
from videoldm_core.system.files import PRIVATE, unreadable, write_text_atomically

FILE = "mlflow_runs.json"

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class Telling(Record):
    """One MLflow run: what it should say, and how much of that has been delivered."""

    name: str
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    metrics: dict[str, float] = {}  # the worth rows
    artifacts: tuple[Path, ...] = ()
    journal: Path | None = None
    attempt: str = ""  # first line of the journal; another one is another run
    started: float  # unix time
    ended: float | None = None
    status: Status = "RUNNING"

    run_id: str | None = None
    told: str = ""  # what was delivered last
    offset: int = 0  # bytes of the journal delivered

    def untold(self) -> "Telling":
        """The same, for a server that knows nothing of it."""
        return self.model_copy(update={"run_id": None, "told": "", "offset": 0})


class Tellings(Record):
    """All runs of one cascade, for one experiment of one tracking server."""

    uri: str
    experiment: str = ""  # MLflow's id of it; "" before the first delivery
    runs: dict[str, Telling] = {}

    def untold(self) -> "Tellings":
        """The same, for an experiment that knows nothing of them."""
        return self._changed(Telling.untold)

    def with_paths(self, change: Callable[[Path], Path]) -> "Tellings":
        """The same, with every path of a file changed."""

        def changed(telling: Telling) -> Telling:
            journal = telling.journal and change(telling.journal)
            artifacts = tuple(map(change, telling.artifacts))
            return telling.model_copy(update={"journal": journal, "artifacts": artifacts})

        return self._changed(changed)

    def _changed(self, change: Callable[[Telling], Telling]) -> "Tellings":
        runs = {name: change(telling) for name, telling in self.runs.items()}
        return self.model_copy(update={"runs": runs})


def store_tellings(out: Path, tellings: Tellings) -> None:
    """Writes them into the run's folder; files of that are named from there, as it may be moved.

    Raises:
        UserError: the folder cannot be written to.
    """
    kept = tellings.with_paths(
        lambda path: path.relative_to(out) if path.is_relative_to(out) else path
    )
    write_text_atomically(out / FILE, kept.model_dump_json(indent=2) + "\n", mode=PRIVATE)


def load_tellings(out: Path, uri: str) -> Tellings:
    """What an earlier command kept in the run's folder; of another server, as if untold.

    Raises:
        UserError: it cannot be read.
    """
    path = out / FILE
    try:
        tellings = Tellings.model_validate_json(path.read_text())
    except FileNotFoundError:
        return Tellings(uri=uri)
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise UserError(
            f"{str(path)!r} is not what this version writes "
            f"({str(error).splitlines()[0]}); delete it: MLflow is then told of what is made "
            "from now on, in new runs."
        ) from None
    tellings = tellings.with_paths(lambda file: out / file)
    if tellings.uri == uri:
        return tellings
    return tellings.untold().model_copy(update={"uri": uri, "experiment": ""})
