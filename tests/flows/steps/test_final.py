"""What a run ends with: a request that cannot be is a sentence before anything is started."""

from typing import Any

import pytest

from flows.config.load import load_run
from flows.config.stage_table import table_of
from flows.launch.local import LocalLauncher
from flows.steps.final import Ending
from flows.steps.stage_runner import Foreman
from flows.tracking.tracker import Tracker
from videoldm_core.errors import UserError


def test_a_request_that_cannot_be_is_a_sentence_and_starts_nothing(tmp_path):
    run = load_run("tiny", [f"out={tmp_path}"])
    sample = run.sample.model_copy(update={"key_frames": 1})  # as if nobody had checked it
    run = run.model_copy(update={"sample": sample})
    tracker = Tracker(uri="sqlite://", experiment="x", out=tmp_path)
    foreman = Foreman(run=run, table=table_of(run), launcher=LocalLauncher(), tracker=tracker)
    unused: Any = None
    with pytest.raises(UserError, match="sample: key_frames = 1: .* greater than or equal to 2"):
        Ending(foreman).sample_to(tmp_path / "video.mp4", unused)
    assert not (tmp_path / "steps").exists()
