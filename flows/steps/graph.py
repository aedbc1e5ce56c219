"""Which steps are due: a pure walk over a graph of steps and the receipts of what was made before.

Knows neither Prefect nor what a step does.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from threading import Event
from typing import Any

from videoldm_core.errors import UserError
from videoldm_core.records import Record
from videoldm_core.system.files import sha256_of_file, unreadable, write_text_atomically

NEVER = "never finished"
OTHER = "its settings, or what it is made from, are others now"


class Made(Record):
    """What a step leaves behind: the file it published last, and every file that must stay."""

    output: Path
    files: tuple[Path, ...] = ()
    process_seconds: float = 0.0  # over all processes; 0 means one process all the time
    incomplete: str = ""  # what is left for the next command, although the step succeeded


class Receipt(Record):
    """A finished step: what it was made from, and what it made."""

    step: str
    made_from: str  # digest of the step's settings and of what it needed
    output: Path  # relative to the run's folder, as are `files`
    files: tuple[Path, ...]
    started: float  # unix time
    seconds: float
    process_seconds: float
    incomplete: str


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One call of a step's `make`."""

    goes_on: bool  # what an earlier attempt left was made from the same; otherwise it must go
    on_line: Callable[[dict[str, Any]], None]  # takes journal lines, for the display
    cancelled: Event  # set when the step should stop


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node of the graph."""

    name: str  # "temporal"
    title: str  # a readable verb: "train temporal"
    needs: tuple[str, ...] = ()
    # JSON data; another value makes the step due.
    settings: Mapping[str, Any] = field(default_factory=dict)
    make: Callable[[Attempt], Made]  # does the work, from where an interrupted attempt stopped
    uses_accelerator: bool = False  # holds a slot while it runs


class Ledger:
    """The receipts of one run's folder, one small file per step."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def receipt(self, step: str) -> Receipt | None:
        """The step's receipt; None when it was never finished.

        Raises:
            UserError: there is one that cannot be read, or is not one of this version.
        """
        path = self._path(step)
        try:
            return Receipt.model_validate_json(path.read_text())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(path, error) from None
        except ValueError as error:
            raise UserError(
                f"{str(path)!r} is not a receipt of this version ({str(error).splitlines()[0]}); "
                f"delete it, and {step!r} is made again."
            ) from None

    def output_digest(self, step: str) -> str | None:
        """Digest of the step's output as it is on disk now; None when it is not all there."""
        receipt = self.receipt(step)
        if receipt is None or self.missing_file(receipt) is not None:
            return None
        return sha256_of_file(self.out / receipt.output)

    def missing_file(self, receipt: Receipt) -> Path | None:
        """The first file of a finished step that has gone since."""
        return next(
            (p for p in (receipt.output, *receipt.files) if not (self.out / p).exists()), None
        )

    def made_from(self, step: Step) -> str:
        """Digest of everything that defines the step's output; all it needs must be there."""
        needs = {name: self.output_digest(name) for name in step.needs}
        assert None not in needs.values(), (
            f"{step.name} was asked about before what it needs: {needs}"
        )
        text = json.dumps({"settings": step.settings, "needs": needs}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def why_due(self, step: Step) -> str | None:
        """Why the step must run although all it needs is there; None when its output is good."""
        receipt = self.receipt(step.name)
        if receipt is None:
            return NEVER
        missing = self.missing_file(receipt)
        if missing is not None:
            return f"{missing} is missing"
        if receipt.incomplete:
            return receipt.incomplete
        return None if receipt.made_from == self.made_from(step) else OTHER

    def begin(self, step: Step) -> bool:
        """Notes from what the step is now made; True when the attempt before was from the same."""
        path, made_from = self.out / "steps" / f"{step.name}.began", self.made_from(step)
        if path.exists() and path.read_text() == made_from:
            return True
        write_text_atomically(path, made_from)
        return False

    def enter(self, step: Step, made: Made, *, started: float, seconds: float) -> Receipt:
        """Writes the receipt of a step that has just been made."""
        receipt = Receipt(
            step=step.name,
            made_from=self.made_from(step),
            output=made.output.relative_to(self.out),
            files=tuple(path.relative_to(self.out) for path in made.files),
            started=started,
            seconds=seconds,
            process_seconds=made.process_seconds or seconds,
            incomplete=made.incomplete,
        )
        write_text_atomically(self._path(step.name), receipt.model_dump_json(indent=2) + "\n")
        return receipt

    def _path(self, step: str) -> Path:
        return self.out / "steps" / f"{step}.json"


def in_order(steps: list[Step]) -> list[Step]:
    """The steps, each after all it needs; otherwise in the order given."""
    by_name = {step.name: step for step in steps}
    for step in steps:
        unknown = set(step.needs) - set(by_name)
        assert not unknown, f"{step.name} needs {unknown}, which no step makes"
    place = {step.name: i for i, step in enumerate(steps)}
    sorter = TopologicalSorter({step.name: step.needs for step in steps})
    try:
        sorter.prepare()
    except CycleError as error:
        raise AssertionError(f"steps need one another in a circle: {error.args[1]}") from None
    ordered = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=place.__getitem__)
        first = ready.pop(0)
        ordered.append(by_name[first])
        sorter.done(first)
    return ordered


def due_steps(steps: list[Step], ledger: Ledger) -> dict[str, str]:
    """Name and reason of every step that must run, in order; empty when everything is done."""
    due: dict[str, str] = {}
    for step in in_order(steps):
        parent = next((name for name in step.needs if name in due), None)
        if parent and ledger.receipt(step.name):
            reason = f"{parent} is made again"
        else:
            reason = NEVER if parent else ledger.why_due(step)
        if reason:
            due[step.name] = reason
    return due


def ancestors(steps: list[Step], name: str) -> set[str]:
    """Everything that a step needs, directly or not."""
    by_name = {step.name: step for step in steps}
    found: set[str] = set()
    waiting = list(by_name[name].needs)
    while waiting:
        found.add(waiting[-1])
        waiting.extend(by_name[waiting.pop()].needs)
    return found
