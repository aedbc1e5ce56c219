"""What a person sees while a run goes on: a bar per running step, one line per finished step.

Without a terminal (a log file, CI) there are lines only.
"""

import threading
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from flows.launch import JournalLine
from flows.steps.graph import NEVER, Step
from videoldm_core.errors import one_line


class _Rate(ProgressColumn):
    """Steps per second since this launch, or seconds per step when slow."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        if not speed:
            return Text("starting" if not task.completed else "", style="dim")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="dim")


class Terminal:
    """One display shared by all steps of a run; safe to call from several threads."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._lock = threading.Lock()
        self._bars: dict[str, _Bar] = {}
        self._remarks: set[str] = set()
        self._progress = Progress(
            TextColumn("  {task.description}", style="bold"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
            redirect_stderr=False,
        )

    def __enter__(self) -> "Terminal":
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(plain(text))

    def plan(self, steps: list[Step], due: Mapping[str, str], seconds: Mapping[str, float]) -> None:
        """Which steps are done, which of them will be made anew and why, and how many are due."""
        for step in steps:
            if step.name not in due:
                took = f"took {duration(seconds[step.name])}" if step.name in seconds else ""
                self.console.print(f"[green]done before[/]  {step.title:<28} [dim]{took}[/]")
            elif due[step.name] != NEVER:
                reason = plain(due[step.name])
                self.console.print(f"[yellow]to be made anew[/] {step.title:<26} {reason}")
        if due:
            self.say(f"{len(due)} of {len(steps)} steps to do: {', '.join(due)}.")

    def started(self, step: Step) -> None:
        """The step runs now."""
        with self._lock:
            self._bars[step.name] = _Bar(self._progress, step.title)

    def line(self, step: Step, line: JournalLine) -> None:
        """A line of the step's journal; what it remarks is said once."""
        remark = f"{step.title}: {line['remark']}." if "remark" in line else ""
        with self._lock:
            if step.name in self._bars:
                self._bars[step.name].show(line)
            is_new = remark not in self._remarks
            self._remarks.add(remark)
        if remark and is_new:
            self.console.print(f"[yellow]note[/]         {plain(remark)}")

    def finished(self, step: Step, seconds: float) -> None:
        """The step is done."""
        self._end(step, f"[green]done[/]         {step.title:<28} {duration(seconds)}")

    def unchanged(self, step: Step) -> None:
        """The step was found done although something before it was made again."""
        self._end(step, f"[green]unchanged[/]    {step.title:<28}")

    def failed(self, step: Step, why: str) -> None:
        """The step failed."""
        first = why.splitlines()[0] if why else ""
        self._end(step, f"[red]failed[/]       {step.title:<28} {plain(first)}")

    def _end(self, step: Step, text: str) -> None:
        with self._lock:
            bar = self._bars.pop(step.name, None)
            if bar:
                bar.remove()
        self.console.print(text)


class _Bar:
    """The progress of one step; lines from before its launch move the bar, but are no speed."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._launched = time.time()
        self._what = ""
        self._id = progress.add_task(title, total=None, note="")

    def show(self, line: JournalLine) -> None:
        """Moves the bar; a line says "total_steps", "step", or "what" is "done" of "total"."""
        total, done = line.get("total_steps", line.get("total")), line.get("step", line.get("done"))
        if total is not None:
            self._progress.update(self._id, total=total)
        if done is None or "image" in line:
            return
        is_new = line.get("what", self._what) != self._what
        if is_new or line.get("time", 0) < self._launched:
            self._what = line.get("what", self._what)
            self._progress.reset(self._id, completed=done, start=True)
        self._progress.update(self._id, completed=done, note=_note(line))

    def remove(self) -> None:
        self._progress.remove_task(self._id)


def _note(line: JournalLine) -> str:
    loss = line.get("metrics", {}).get("loss")
    return plain(str(line.get("what", ""))) if loss is None else f"loss {loss:.4f}"


def plain(text: str) -> str:
    """`text` for a console: without markup, line breaks, and what a terminal would obey."""
    return escape(one_line(text))


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
