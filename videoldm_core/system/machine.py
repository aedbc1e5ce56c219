"""What work is fitted to: the cores of this machine, and how a job is told to use it.

Imports nothing slow.
"""

import os
from typing import Literal

Precision = Literal["fp32", "bf16"]  # bf16: autocast; what trains stays float32
ZeroStage = Literal[0, 1, 2, 3]  # of DeepSpeed: how much is shared between processes


def usable_cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
