"""Which steps are due, over random graphs: dirt spreads downstream and nowhere else."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.steps.graph import OTHER, Attempt, Ledger, Made, Step, ancestors, due_steps, in_order
from videoldm_core.errors import UserError


def attempt(goes_on: bool) -> Attempt:
    return Attempt(goes_on=goes_on, on_line=lambda line: None, cancelled=Event())


def make_all(steps: list[Step], ledger: Ledger) -> None:
    """Runs every due step the way the flow does."""
    for step in in_order(steps):
        if ledger.why_due(step):
            ledger.enter(step, step.make(attempt(ledger.begin(step))), started=0.0, seconds=1.0)


def writing_step(out: Path, name: str, needs: tuple[str, ...] = (), **fields) -> Step:
    def make(attempt: Attempt) -> Made:
        path = out / name / "done.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{name} {fields}")
        (path.parent / "weights").write_text("w")
        return Made(output=path, files=(path.parent / "weights",))

    return Step(name=name, title=f"make {name}", needs=needs, settings=fields, make=make)


@st.composite
def graphs(draw) -> list[tuple[str, tuple[str, ...]]]:
    size = draw(st.integers(2, 7))
    return [(f"s{i}", tuple(f"s{j}" for j in range(i) if draw(st.booleans()))) for i in range(size)]


@settings(deadline=None, max_examples=30)
@given(graphs(), st.data())
def test_deleting_one_output_makes_it_and_its_descendants_due_and_nothing_else(graph, data):
    with TemporaryDirectory() as folder:
        out = Path(folder)
        steps, ledger = [writing_step(out, *node) for node in graph], Ledger(out)
        assert list(due_steps(steps, ledger)) == [step.name for step in steps]
        make_all(steps, ledger)
        assert due_steps(steps, ledger) == {}
        victim = data.draw(st.sampled_from(steps)).name
        shutil.rmtree(out / victim)
        downstream = {step.name for step in steps if victim in ancestors(steps, step.name)}
        assert set(due_steps(steps, ledger)) == {victim} | downstream


def chain(out: Path, **fields) -> list[Step]:
    return [
        writing_step(out, "image"),
        writing_step(out, "temporal", ("image",), **fields),
        writing_step(out, "predictor", ("temporal",)),
        writing_step(out, "decoder"),
    ]


def test_a_changed_setting_makes_the_step_and_its_descendants_due(tmp_path):
    ledger = Ledger(tmp_path)
    make_all(chain(tmp_path, steps=100), ledger)
    assert due_steps(chain(tmp_path, steps=200), ledger) == {
        "temporal": OTHER,
        "predictor": "temporal is made again",
    }


def test_a_parent_published_by_somebody_else_makes_the_children_due(tmp_path):
    ledger = Ledger(tmp_path)
    make_all(chain(tmp_path), ledger)
    (tmp_path / "temporal" / "done.json").write_text("trained by hand")
    assert list(due_steps(chain(tmp_path), ledger)) == ["predictor"]


def test_a_step_made_again_with_the_same_result_leaves_its_children_alone(tmp_path):
    ledger = Ledger(tmp_path)
    steps = chain(tmp_path)
    make_all(steps, ledger)
    receipt = ledger.receipt("predictor")
    shutil.rmtree(tmp_path / "image")
    make_all(steps, ledger)
    assert ledger.receipt("predictor") == receipt


def test_a_file_gone_from_inside_an_output_is_named(tmp_path):
    ledger = Ledger(tmp_path)
    make_all(chain(tmp_path), ledger)
    (tmp_path / "decoder" / "weights").unlink()
    assert due_steps(chain(tmp_path), ledger) == {"decoder": "decoder/weights is missing"}


def test_a_torn_receipt_is_said_and_its_work_is_not_thrown_away(tmp_path):
    ledger = Ledger(tmp_path)
    make_all(chain(tmp_path), ledger)
    receipt = tmp_path / "steps" / "decoder.json"
    receipt.write_text('{"step"')
    with pytest.raises(UserError, match=r"decoder.json' is not a receipt .* 'decoder' is made aga"):
        due_steps(chain(tmp_path), ledger)
    receipt.unlink()
    assert due_steps(chain(tmp_path), ledger) == {"decoder": "never finished"}


def test_an_unreadable_receipt_is_said(tmp_path):
    ledger = Ledger(tmp_path)
    (tmp_path / "steps" / "decoder.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Cannot read '.*decoder.json': Is a directory"):
        ledger.receipt("decoder")


def test_settings_that_are_not_json_are_a_programming_error(tmp_path):
    step = writing_step(tmp_path, "image", model=object())
    with pytest.raises(TypeError, match="not JSON serializable"):
        Ledger(tmp_path).begin(step)


def test_an_attempt_goes_on_only_where_one_from_the_same_stopped(tmp_path):
    ledger = Ledger(tmp_path)
    image, temporal, *_ = chain(tmp_path, steps=100)
    make_all([image], ledger)
    assert not ledger.begin(temporal)
    assert ledger.begin(temporal)
    assert not ledger.begin(chain(tmp_path, steps=200)[1])


def test_what_a_step_left_for_later_is_due(tmp_path):
    ledger = Ledger(tmp_path)
    step = writing_step(tmp_path, "release")
    made = step.make(attempt(False)).model_copy(update={"incomplete": "the server was away"})
    ledger.enter(step, made, started=0.0, seconds=0.0)
    assert due_steps([step], ledger) == {"release": "the server was away"}


def test_steps_come_after_what_they_need_and_otherwise_as_listed(tmp_path):
    steps = [
        writing_step(tmp_path, "b", ("a",)),
        writing_step(tmp_path, "a"),
        writing_step(tmp_path, "c"),
    ]
    assert [step.name for step in in_order(steps)] == ["a", "b", "c"]


def test_a_circle_is_a_programming_error(tmp_path):
    with pytest.raises(AssertionError, match="circle"):
        in_order([writing_step(tmp_path, "a", ("b",)), writing_step(tmp_path, "b", ("a",))])
