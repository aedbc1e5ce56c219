"""The display reads journals of every kind of command."""

from io import StringIO

from rich.console import Console

from flows.runner.terminal import Terminal
from flows.steps.graph import NEVER, OTHER, Step

STEP = Step(name="temporal", title="train temporal", make=lambda attempt: None)


def new_terminal(*, is_terminal: bool) -> Terminal:
    return Terminal(Console(file=StringIO(), width=120, force_terminal=is_terminal))


def bar_of(terminal: Terminal):
    (bar,) = terminal._progress.tasks
    return bar


def test_a_bar_follows_the_journal_of_a_training():
    terminal = new_terminal(is_terminal=True)
    terminal.started(STEP)
    terminal.line(STEP, {"time": 9e9, "total_steps": 40, "start": 0})
    terminal.line(STEP, {"time": 9e9, "step": 10, "metrics": {"loss": 0.25}})
    terminal.line(STEP, {"time": 9e9, "step": 10, "image": "x.png", "name": "x"})
    bar = bar_of(terminal)
    assert (bar.completed, bar.total, bar.fields["note"]) == (10, 40, "loss 0.2500")


def test_what_an_earlier_launch_did_moves_the_bar_but_is_no_speed():
    terminal = new_terminal(is_terminal=True)
    terminal.started(STEP)
    terminal.line(STEP, {"time": 1.0, "total_steps": 40})
    terminal.line(STEP, {"time": 1.0, "step": 30, "metrics": {}})
    assert bar_of(terminal).completed == 30
    assert not bar_of(terminal).speed


def test_a_bar_follows_the_parts_of_a_sampling():
    terminal = new_terminal(is_terminal=True)
    terminal.started(STEP)
    terminal.line(STEP, {"time": 9e9, "what": "key frames", "done": 5, "total": 5})
    terminal.line(STEP, {"time": 9e9, "what": "decoding", "done": 1, "total": 9})
    bar = bar_of(terminal)
    assert (bar.completed, bar.total, bar.fields["note"]) == (1, 9, "decoding")


def test_without_a_terminal_there_is_one_line_per_finished_step():
    terminal = new_terminal(is_terminal=False)
    with terminal:
        terminal.started(STEP)
        terminal.line(STEP, {"time": 9e9, "step": 1, "metrics": {}})
        terminal.finished(STEP, 65.0)
    lines = terminal.console.file.getvalue().strip().splitlines()
    assert lines == ["done         train temporal               1 min 05 s"]


def test_what_a_stage_remarks_is_said_once_however_often_it_is_resumed():
    terminal = new_terminal(is_terminal=False)
    terminal.started(STEP)
    for _ in range(2):
        terminal.line(STEP, {"time": 9e9, "total_steps": 4, "remark": "judged by pixels alone"})
    lines = terminal.console.file.getvalue().strip().splitlines()
    assert lines == ["note         train temporal: judged by pixels alone."]


def test_a_step_that_was_made_before_and_is_made_anew_says_why():
    terminal = new_terminal(is_terminal=False)
    steps = [
        Step(name=name, title=f"train {name}", make=lambda attempt: None)
        for name in ("image", "temporal", "predictor")
    ]
    terminal.plan(steps, {"temporal": OTHER, "predictor": NEVER}, {"image": 60.0})
    assert isinstance(terminal.console.file, StringIO)
    lines = terminal.console.file.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["done", "to", "2"]
    assert "train temporal" in lines[1]
    assert lines[1].endswith(OTHER)


def test_names_that_a_terminal_would_obey_are_shown_as_they_are_written():
    """A journal, an error and a reason may hold the name of any file."""
    terminal = new_terminal(is_terminal=False)
    name = "a\x1b[2J\r\nerror: b\u202e\udcff[red].mp4"
    terminal.line(STEP, {"remark": name})
    terminal.failed(STEP, name.replace("\r\n", ""))
    terminal.plan([STEP], {"temporal": name}, {})
    terminal.say(name)
    shown = terminal.console.file.getvalue()
    assert shown.count("\n") == 5, "a line each, and that a step is to do"
    assert shown.count(r"\x1b[2J") == shown.count(r"error: b\u202e\udcff[red].mp4") == 4
    assert not set(shown) & set("\x1b\r\u202e\udcff")
