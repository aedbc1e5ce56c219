"""Which code is running."""

import subprocess
from pathlib import Path

UNKNOWN = "unknown"
ANSWER_S = 60  # of a disk that others keep busy


def git_commit() -> str:
    """The commit of the running code; "unknown" outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
        )
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN
    return answer.stdout.strip() or UNKNOWN
