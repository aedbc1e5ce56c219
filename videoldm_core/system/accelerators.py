"""The accelerators of this machine, asked of its driver: no tensor library is needed for it."""

import subprocess

ANSWER_S = 20


def accelerators() -> list[str]:
    """Name and memory of each; none where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.strip().splitlines()
