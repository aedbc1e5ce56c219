"""One command's work on one run folder: puts display, tracker, launcher and steps together."""

import contextlib
import shutil
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.pretty import Pretty

from flows.config.addresses import check_environment
from flows.config.hub import pinned
from flows.config.load import store_run, tracking_uri
from flows.config.pretrained import check_brought
from flows.config.run import RunConfig
from flows.config.stage_table import table_of
from flows.launch import Launcher
from flows.launch.local import LocalLauncher
from flows.report.summary import show_summary, show_worth
from flows.runner.executor import Crew, locked, make_due
from flows.runner.failures import StepsFailed
from flows.runner.proxies import servers_of, settle_proxies
from flows.runner.terminal import Terminal
from flows.steps.cascade import cascade_steps
from flows.steps.final import Ending
from flows.steps.graph import Attempt, Ledger, Made, Step, due_steps
from flows.steps.stage_runner import Foreman
from flows.tracking.tracked_runs import Status
from flows.tracking.tracker import CASCADE, Tracker
from videoldm_core.errors import UserError
from videoldm_core.system.accelerators import accelerators
from videoldm_core.system.git import git_commit

LEAST_FREE_BYTES = 300 * 2**20


@dataclass(frozen=True)
class Session:
    """What a command works with while it holds the run's folder."""

    foreman: Foreman
    terminal: Terminal
    steps: list[Step]

    @property
    def run(self) -> RunConfig:
        """The resolved config."""
        return self.foreman.run


def work(run: RunConfig, *, only: tuple[str, ...] = (), launcher: Launcher | None = None) -> None:
    """Makes what is due, all of it or only some steps, and shows where everything is.

    Args:
        launcher: starts the commands; None starts local processes.

    Raises:
        UserError: the folder cannot be used, or something is missing that the user must provide.
        StepsFailed: names the steps that failed.
    """
    with _session(run, launcher or LocalLauncher()) as session:
        crew = Crew(run=session.run, terminal=session.terminal)
        try:
            with session.terminal:
                make_due(crew, session.steps, only=only, around=partial(_told, session))
        except StepsFailed as error:
            _raise_lone_user_error(error)
        if not only:
            show_summary(session.run, session.foreman.table, session.terminal)
        _say_what_is_left(session)


def sample_to(
    run: RunConfig, video: Path | None, *, launcher: Launcher | None = None
) -> list[Path]:
    """Samples a video, or several futures, with the trained stages of `run`.

    Goes on with what the same command began; what is finished is sampled again.

    Raises:
        UserError: a stage is not trained.
    """
    with _session(run, launcher or LocalLauncher()) as session:
        for name, reason in due_steps(session.steps, Ledger(run.out)).items():
            if name in {row.name for row in session.foreman.table.stages}:
                raise UserError(
                    f"The stage {name!r} is not trained ({reason}); "
                    f"train it first: videoldm train {name} RUNFILE."
                )
        target = (video or run.out / "video.mp4").absolute()
        step = next(step for step in session.steps if step.name == "sample")
        with session.terminal:
            made = Ending(session.foreman).sample_to(target, _attempt(session.terminal, step))
        return [path for path in (made.output, *made.files) if path.suffix == ".mp4"]


def evaluate(
    run: RunConfig, stage: str | None = None, *, launcher: Launcher | None = None
) -> list[dict[str, Any]]:
    """Measures one trained stage, or all of them, once more; the rows of the worth table.

    Raises:
        UserError: the stage, or any stage at all, is not trained.
    """
    with _session(run, launcher or LocalLauncher()) as session:
        foreman, terminal = session.foreman, session.terminal
        names = (
            [foreman.table.stage(stage).name] if stage else [r.name for r in foreman.table.stages]
        )
        trained = [name for name in names if (run.stage_folder(name) / "stage.json").is_file()]
        if not trained:
            raise UserError(
                f"There is no trained stage {stage or 'at all'} in {str(run.out)!r}; "
                f"train it first: videoldm train {stage or names[0]} RUNFILE."
            )
        rows: list[dict[str, Any]] = []
        with terminal:
            for name in trained:
                step = Step(name=name, title=f"evaluate {name}", make=_nothing)
                rows += foreman.evaluate(name, _attempt(terminal, step))
        show_worth(rows, terminal)
        return rows


def _attempt(terminal: Terminal, step: Step) -> Attempt:
    """An attempt at a step outside the graph, with its bar."""
    terminal.started(step)
    return Attempt(
        goes_on=False,
        on_line=lambda line: terminal.line(step, line),
        cancelled=threading.Event(),
    )


def _nothing(attempt: Attempt) -> Made:
    raise AssertionError("a step that is only shown is not made")


@contextlib.contextmanager
def _session(run: RunConfig, launcher: Launcher) -> Iterator[Session]:
    table = table_of(run)
    check_environment()
    check_brought(table)
    settle_proxies(servers_of(run, table))
    terminal = Terminal()
    with locked(run.out) as remark:
        _check_space(run.out)
        _check_slots(run)
        run, moved = pinned(run)
        table = table_of(run)
        for said in filter(None, (remark, _who_may_look(run.out), *moved)):
            terminal.say(said)
        terminal.say(f"videoldm {run.name}: preset {run.preset}, everything is below {run.out}")
        if not (run.out / "run.json").exists():
            terminal.console.print(Pretty(run.model_dump(mode="json")))
        store_run(run)
        tracker = Tracker(uri=tracking_uri(run), experiment=run.name, out=run.out)
        foreman = Foreman(run=run, table=table, launcher=launcher, tracker=tracker)
        yield Session(foreman, terminal, cascade_steps(foreman))


@contextlib.contextmanager
def _told(session: Session) -> Iterator[None]:
    """Tells MLflow about the cascade's run while something is made."""
    tracker, run = session.foreman.tracker, session.run
    params = run.model_dump(mode="json", exclude={"stages", "sample", "world"})
    tracker.begin(CASCADE, params=params, tags={"git_commit": git_commit()})
    tracker.start_delivering()
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.end(CASCADE, status)
        tracker.close()


def _check_space(out: Path) -> None:
    free = shutil.disk_usage(out).free
    if free < LEAST_FREE_BYTES:
        raise UserError(
            f"The disk of {str(out)!r} has {free / 2**20:.0f} MiB free; a run needs at least "
            f"{LEAST_FREE_BYTES / 2**20:.0f} MiB; free space there or give another out=FOLDER."
        )


def _who_may_look(out: Path) -> str:
    """The first command in a folder says when it is not the user's alone; that is left so."""
    mode = stat.S_IMODE(out.stat().st_mode)
    if (out / "run.json").exists() or not mode & 0o077:
        return ""
    return (
        f"Others may look into {str(out)!r} (mode {mode:o}), which was there before; files with "
        "the run's settings in it are this user's alone. chmod 700 keeps the rest so, too."
    )


def _check_slots(run: RunConfig) -> None:
    """Every stage takes the accelerators from the first on: two at a time would share them."""
    found = accelerators() if run.concurrent_stages > 1 else []
    if found:
        raise UserError(
            f"concurrent_stages = {run.concurrent_stages}, but this machine has {len(found)} "
            "accelerator(s), which stages that run at a time would share; expected 1: give a stage "
            "more processes instead."
        )


def _raise_lone_user_error(error: StepsFailed) -> None:
    """A run that failed for one reason that the user can mend says just that."""
    if len(error.failures) == 1:
        (name, cause), *_ = error.failures.items()
        if isinstance(cause, UserError):
            raise UserError(f"step {name!r}: {cause}") from None
    raise error


def _say_what_is_left(session: Session) -> None:
    tracker = session.foreman.tracker
    if not tracker.is_all_delivered() and not tracker.deliver():
        session.terminal.say(
            f"MLflow at {tracker.uri} has not taken everything: {tracker.problem}. Once that is "
            "mended, the next command delivers the rest."
        )
