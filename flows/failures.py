"""How a run can fail, apart from a user's mistake. Imports nothing slow."""

from collections.abc import Mapping


class StepsFailed(Exception):
    """Some steps failed; the others that could be made are made."""

    def __init__(self, failures: Mapping[str, BaseException]) -> None:
        self.failures = dict(failures)
        super().__init__(
            "; ".join(f"step {name!r} failed: {error}" for name, error in failures.items())
        )
