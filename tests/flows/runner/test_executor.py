"""The flow itself, under a real Prefect server with steps that only write files."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

import flows.runner.executor
from flows.config.run import RunConfig
from flows.runner.executor import Crew, locked, make_due
from flows.runner.failures import StepsFailed
from flows.runner.slots import Slots
from flows.runner.terminal import Terminal, duration
from flows.steps.graph import Attempt, Made, Step
from videoldm_core.errors import UserError

from ..launching import PATIENCE_S

pytestmark = pytest.mark.usefixtures("prefect_server")


def new_crew(out: Path, **fields) -> Crew:
    run = RunConfig.model_validate({"preset": "tiny", "name": "test", "out": out, **fields})
    return Crew(run=run, terminal=Terminal(Console(file=StringIO(), width=120)))


def said(crew: Crew) -> str:
    return crew.terminal.console.file.getvalue()


class Workplace:
    """Steps that note when they ran."""

    def __init__(self, out: Path, *, together: int = 1) -> None:
        self.out = out
        self.together = threading.Barrier(together)  # so many run before one of them ends
        self.ran: list[str] = []
        self.running = 0
        self.most_running = 0
        self.broken: set[str] = set()
        self.lock = threading.Lock()

    def step(self, name: str, *needs: str, uses_accelerator: bool = False) -> Step:
        def make(attempt: Attempt) -> Made:
            with self.lock:
                self.running += 1
                self.most_running = max(self.most_running, self.running)
            self.together.wait(PATIENCE_S)
            with self.lock:
                self.running -= 1
                self.ran.append(name)
            if name in self.broken:
                raise UserError(f"{name} has no weights.")
            path = self.out / name / "stage.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} {time.time_ns()}")
            return Made(output=path)

        return Step(
            name=name,
            title=f"train {name}",
            needs=needs,
            make=make,
            uses_accelerator=uses_accelerator,
        )

    def cascade(self) -> list[Step]:
        return [
            self.step("latents"),
            self.step("temporal", "latents", uses_accelerator=True),
            self.step("predictor", "temporal", uses_accelerator=True),
            self.step("interpolator", "temporal", uses_accelerator=True),
            self.step("decoder", uses_accelerator=True),
            self.step("report", "predictor", "interpolator", "decoder"),
        ]


def test_everything_runs_once_in_order_and_then_nothing_does(tmp_path):
    place = Workplace(tmp_path)
    assert make_due(new_crew(tmp_path), place.cascade())
    assert sorted(place.ran) == sorted(step.name for step in place.cascade())
    assert place.ran.index("latents") < place.ran.index("temporal") < place.ran.index("predictor")
    assert place.ran[-1] == "report"
    place.ran.clear()
    crew = new_crew(tmp_path)
    assert not make_due(crew, place.cascade())
    assert place.ran == []
    assert said(crew).count("done before") == 6


def test_a_deleted_stage_is_made_again_with_what_depends_on_it(tmp_path):
    place = Workplace(tmp_path)
    make_due(new_crew(tmp_path), place.cascade())
    place.ran.clear()
    shutil.rmtree(tmp_path / "predictor")
    make_due(new_crew(tmp_path), place.cascade())
    assert place.ran == ["predictor", "report"]


def test_a_failing_stage_is_named_and_other_branches_finish(tmp_path):
    place = Workplace(tmp_path)
    place.broken = {"predictor"}
    crew = new_crew(tmp_path)
    with pytest.raises(StepsFailed, match="step 'predictor' failed: predictor has no weights"):
        make_due(crew, place.cascade())
    assert {"interpolator", "decoder"} <= set(place.ran)
    assert "report" not in place.ran
    assert "failed       train predictor" in said(crew)
    place.broken.clear()
    place.ran.clear()
    make_due(new_crew(tmp_path), place.cascade())
    assert place.ran == ["predictor", "report"]


@pytest.mark.parametrize("slots", [1, 2])
def test_no_more_steps_use_accelerators_at_once_than_there_are_slots(tmp_path, slots):
    place = Workplace(tmp_path, together=slots)
    steps = [place.step(f"s{i}", uses_accelerator=True) for i in range(4)]
    make_due(new_crew(tmp_path, concurrent_stages=slots), steps)
    assert place.most_running == slots


def test_a_free_slot_goes_to_the_step_that_comes_first_in_the_table(tmp_path, monkeypatch):
    place = Workplace(tmp_path)
    steps = [
        place.step("data"),
        *(place.step(f"s{i}", "data", uses_accelerator=True) for i in range(5)),
    ]
    arrived = threading.Barrier(5)  # in any order, and at any pace
    monkeypatch.setattr(Slots, "_settle", lambda *_: arrived.wait(PATIENCE_S))
    make_due(new_crew(tmp_path), steps)
    assert place.ran == ["data", "s0", "s1", "s2", "s3", "s4"]


def test_one_step_can_be_asked_for_with_what_it_needs(tmp_path):
    place = Workplace(tmp_path)
    make_due(new_crew(tmp_path), place.cascade(), only=("temporal",))
    assert place.ran == ["latents", "temporal"]


def test_a_stage_is_not_trained_without_its_parent(tmp_path):
    place = Workplace(tmp_path)
    needed = "'predictor' needs the stage 'temporal', which is not trained .never finished."
    with pytest.raises(UserError, match=f"{needed}; train it first: videoldm train temporal"):
        make_due(new_crew(tmp_path), place.cascade(), only=("predictor",))
    assert place.ran == []


def test_the_states_of_all_steps_are_shown_by_prefect(tmp_path):
    from prefect.client.orchestration import get_client

    place = Workplace(tmp_path)
    make_due(new_crew(tmp_path), place.cascade(), only=("temporal",))
    make_due(new_crew(tmp_path, name="second"), place.cascade(), only=("predictor",))
    with get_client(sync_client=True) as client:
        flow_run = next(r for r in client.read_flow_runs() if r.name == "second")
        tasks = [t for t in client.read_task_runs() if t.flow_run_id == flow_run.id]
    states = {t.name: t.state_name for t in tasks}
    assert states == {
        "train latents": "DoneBefore",
        "train temporal": "DoneBefore",
        "train predictor": "Completed",
    }


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell starts with "&" ignores SIGINT, and so would the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_reaches_the_running_steps(tmp_path, monkeypatch):
    crew = new_crew(tmp_path)
    heard, waited_for = threading.Event(), threading.Event()
    wait_for = flows.runner.executor._wait_for

    def noticed(futures) -> None:
        waited_for.set()
        wait_for(futures)

    def wait(attempt: Attempt) -> Made:
        assert waited_for.wait(PATIENCE_S)
        os.kill(os.getpid(), signal.SIGINT)
        if attempt.cancelled.wait(PATIENCE_S):
            time.sleep(0.5)  # as long as ending a child takes
            heard.set()
        raise UserError("stopped")

    monkeypatch.setattr(flows.runner.executor, "_wait_for", noticed)

    with pytest.raises(BaseException):  # noqa: B017, PT011 (Prefect may wrap it)
        make_due(crew, [Step(name="slow", title="train slow", make=wait, uses_accelerator=True)])
    assert heard.is_set(), "it is waited for until it has ended"


def test_a_second_command_on_the_same_folder_is_refused(tmp_path):
    source = (
        "import sys\nfrom pathlib import Path\nfrom flows.runner.executor import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).parents[3]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", source, str(tmp_path)], cwd=root, **pipes)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="Another videoldm command is working in"), locked(tmp_path):
        pass
    other.kill()
    other.communicate()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_holds_the_folder_too_and_that_is_said(
    tmp_path, monkeypatch, number
):
    def refuse(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "run") as remark:
        assert "has no locks: '.lock.held' keeps other commands away" in remark
        with (
            pytest.raises(UserError, match=rf"working in .* \(it is process {os.getpid()} on host"),
            locked(tmp_path / "run"),
        ):
            pass
    with locked(tmp_path / "run"):
        pass


def test_a_folder_with_locks_needs_no_remark(tmp_path):
    with locked(tmp_path / "run") as remark:
        assert remark == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
