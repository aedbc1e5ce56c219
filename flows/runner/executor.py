"""WHEN things happen: the Prefect flow that makes every due step of a run, as soon as it can.

Knows the graph and the receipts; what a step does is in steps.py.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.config.load import store_run
from flows.config.run import RunConfig
from flows.config.stage_table import table_of
from flows.launch import Cancelled
from flows.runner.failures import StepsFailed
from flows.runner.prefect_server import use_prefect
from flows.runner.slots import Slots
from flows.runner.terminal import Terminal
from flows.steps.graph import Attempt, Ledger, Made, Receipt, Step, ancestors, due_steps, in_order
from videoldm_core.errors import UserError, reason_of
from videoldm_core.system.files import disk_error, make_folder
from videoldm_core.system.locks import Held, lock


@dataclass(kw_only=True)
class Crew:
    """What the steps of one run share: receipts, display, slots, and whether to stop."""

    run: RunConfig
    terminal: Terminal
    ledger: Ledger = field(init=False)
    cancelled: threading.Event = field(default_factory=threading.Event)
    failures: dict[str, BaseException] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.run.out)
        self._slots = Slots(self.run.concurrent_stages)

    def perform(self, step: Step, place: int) -> Receipt | None:
        """Makes one step and enters its receipt; None when it turns out to be good as it is.

        Args:
            place: of the step in the table; who comes first gets a free slot first.
        """
        if self.cancelled.is_set():
            raise Cancelled
        if self.ledger.why_due(step) is None:
            self.terminal.unchanged(step)
            return None
        needs_slot = step.uses_accelerator
        with self._slots.hold(place, self.cancelled) if needs_slot else nullcontext():
            self.terminal.started(step)
            started, clock = time.time(), time.monotonic()
            made = self._make(step)
            seconds = time.monotonic() - clock
            receipt = self.ledger.enter(step, made, started=started, seconds=seconds)
        self.terminal.finished(step, seconds)
        return receipt

    def _make(self, step: Step) -> Made:
        try:
            attempt = Attempt(
                goes_on=self.ledger.begin(step),
                on_line=lambda line: self.terminal.line(step, line),
                cancelled=self.cancelled,
            )
            return step.make(attempt)
        except Cancelled:
            raise
        except Exception as error:
            self.failures[step.name] = error
            self.terminal.failed(step, str(error) or repr(error))
            raise


def make_due(
    crew: Crew,
    steps: list[Step],
    *,
    only: tuple[str, ...] = (),
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> bool:
    """Makes every due step; False when everything was done before.

    Args:
        only: steps to make, with the data they need; the stages they need must be trained. Empty
            makes everything.
        around: entered when something is due and nothing is in its way.

    Raises:
        StepsFailed: names every step that failed by itself.
        UserError: a stage that `only` needs is not trained.
    """
    if only:
        wanted = set(only).union(*(ancestors(steps, name) for name in only))
        steps = [step for step in steps if step.name in wanted]
    steps = in_order(steps)
    due = due_steps(steps, crew.ledger)
    if only:
        _refuse_untrained(crew.run, due, only)
    receipts = {step.name: crew.ledger.receipt(step.name) for step in steps}
    crew.terminal.plan(steps, due, {name: r.seconds for name, r in receipts.items() if r})
    if due:
        store_run(crew.run)
        page = use_prefect(crew.run.out)
        if page:
            crew.terminal.say(f"Prefect's page while this runs: {page.address}")
            crew.terminal.say(f"The page asks for the password in {page.password}")
        with around():
            _run_flow(crew, steps, due)
    return bool(due)


def _refuse_untrained(run: RunConfig, due: dict[str, str], only: tuple[str, ...]) -> None:
    stages = {row.name for row in table_of(run).stages}
    for name, reason in due.items():
        if name in stages and name not in only:
            raise UserError(
                f"{only[-1]!r} needs the stage {name!r}, which is not trained ({reason}); "
                f"train it first: videoldm train {name} RUNFILE."
            )


@contextlib.contextmanager
def locked(out: Path) -> Iterator[str]:
    """Holds a run's folder, so that no second command writes into it.

    Yields:
        What the user should know about that; "" for nothing.

    Raises:
        UserError: another command holds it, or it cannot be written to.
    """
    with contextlib.ExitStack() as held:
        try:
            make_folder(out, mode=0o700)
            named = held.enter_context(lock(out / ".lock"))
        except Held as error:
            hint = f" ({error.hint})" if error.hint else ""
            raise UserError(
                f"Another videoldm command is working in {str(out)!r}{hint}; "
                "wait for it, or give another out=FOLDER."
            ) from None
        except OSError as error:
            raise disk_error(out, error) from error
        yield _remark(out, named)


def _remark(out: Path, named: Path | None) -> str:
    if named is None:
        return ""
    return (
        f"The file system of {str(out)!r} has no locks: {named.name!r} keeps other commands away "
        "while this one runs."
    )


def _run_flow(crew: Crew, steps: list[Step], due: dict[str, str]) -> None:
    import httpx
    from prefect import flow
    from prefect.exceptions import PrefectException
    from prefect.task_runners import ThreadPoolTaskRunner

    # a thread per step, because a waiting step holds its thread; the slots limit what trains
    runner: Any = ThreadPoolTaskRunner(max_workers=len(steps))
    run_cascade = flow(
        name="run-cascade", flow_run_name=crew.run.name, task_runner=runner, persist_result=False
    )(_submit_all)
    hidden = _Hidden(crew, steps, due)
    try:
        # Prefect would unpickle a result that the server names; we need none.
        state = run_cascade(hidden, return_state=True)
    except (httpx.HTTPError, PrefectException) as error:
        raise hidden.error or _not_noted(error.__cause__ or error) from None
    if hidden.error:
        raise hidden.error
    if not hidden.is_done:
        raise UserError(
            f"Prefect did not let the run start (it is {state.name!r} there: {state.message}); "
            "run the command again."
        )


def _not_noted(error: BaseException) -> UserError:
    return UserError(
        f"Prefect's server could not note how the run ended ({reason_of(error)}); what was made "
        "is kept: run the command again to go on."
    )


class _Hidden:
    """Carries live objects through a flow call, which would otherwise copy and describe them."""

    def __init__(self, crew: Crew, steps: list[Step], due: dict[str, str]) -> None:
        self.crew, self.steps, self.due = crew, steps, due
        self.is_done = False
        self.error: BaseException | None = None  # what ended the flow


def _wait_for(futures: dict[str, Any]) -> None:
    for future in futures.values():
        future.wait()


def _submit_all(hidden: _Hidden) -> None:
    try:
        _make_all(hidden.crew, hidden.steps, hidden.due)
        hidden.is_done = True
    except BaseException as error:
        hidden.error = error
        raise


def _make_all(crew: Crew, steps: list[Step], due: dict[str, str]) -> None:
    from prefect import states, task

    by_name = {step.name: step for step in steps}

    def make_step(name: str) -> Any:
        if name not in due:
            return states.Completed(
                name="DoneBefore", message="its output is there and made from the same"
            )
        try:
            receipt = crew.perform(by_name[name], place=list(by_name).index(name))
        except Cancelled:
            return states.Cancelled(message="the run was stopped")
        return states.Completed(
            message=f"took {receipt.seconds:.0f} s" if receipt else "found unchanged"
        )

    futures: dict[str, Any] = {}
    for step in steps:
        named: Any = task(name=step.title, task_run_name=step.title, persist_result=False)(
            make_step
        )
        futures[step.name] = named.submit(
            step.name, wait_for=[futures[need] for need in step.needs]
        )
    try:
        _wait_for(futures)
    except BaseException:  # an interrupt too: the threads hear nothing of it by themselves
        crew.cancelled.set()
        _wait_for(futures)  # a child is being stopped, and Prefect has to hear of it
        raise
    if crew.failures:
        raise StepsFailed(crew.failures)
    unfinished = [name for name, future in futures.items() if not future.state.is_completed()]
    assert not unfinished, f"these steps did not run although none failed: {unfinished}"
