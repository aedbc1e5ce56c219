"""How a run can fail, apart from a user's mistake. Imports nothing slow."""

from collections.abc import Mapping

from flows.launch import StageCrashed
from videoldm_core.errors import one_line


class StepsFailed(Exception):
    """Some steps failed; the others that could be made are made."""

    def __init__(self, failures: Mapping[str, BaseException]) -> None:
        self.failures = dict(failures)
        super().__init__(
            "; ".join(f"step {name!r} failed: {_said(error)}" for name, error in failures.items())
        )


def _said(error: BaseException) -> str:
    """What an error says; its own lines are left to what was made to be read on several."""
    return str(error) if isinstance(error, StageCrashed) else one_line(str(error))
