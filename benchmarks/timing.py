"""What every benchmark shares: turns in rounds, medians of ratios, and the machine's own limit.

Rates of one moment say little on a machine that others use too. So whatever is compared takes turns
within a round, ratios are taken within the round, and their median over the rounds is reported.
"""

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from flows.launch.local import environment

MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
MATRIX_REPEATS = 8


def device() -> torch.device:
    """The accelerator, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(where: torch.device) -> str:
    """What the numbers below were measured on; names an accelerator only where `where` is one."""
    if where.type == "cuda":
        name = torch.cuda.get_device_name(where)
    else:
        name = f"{processor()}, {torch.get_num_threads()} threads, no accelerator used"
    return f"{name}, torch {torch.__version__}"


def processor() -> str:
    """What this machine computes with, as it names itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def settle(where: torch.device) -> None:
    """Waits until all that was asked of `where` is done."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def seconds_of(call: Callable[[], object], where: torch.device) -> float:
    """Wall-clock seconds of one call, its work on `where` included."""
    settle(where)
    began = time.perf_counter()
    call()
    settle(where)
    return time.perf_counter() - began


def take_turns(
    calls: Mapping[str, Callable[[], object]], where: torch.device, *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call per round; every round begins with another call.

    Args:
        warmup: calls of each that are not counted.
    """
    names = list(calls)
    for _ in range(warmup):
        for name in names:
            calls[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for done in range(rounds):
        first = done % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(seconds_of(calls[name], where))
        sys.stderr.write(f"\rround {done + 1}/{rounds}")
    sys.stderr.write("\n")
    return seconds


def median(seconds: list[float]) -> float:
    """Of one call over the rounds."""
    return statistics.median(seconds)


def ratio(of: list[float], to: list[float]) -> float:
    """Median over the rounds of `of` / `to`."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def span_of_ratio(of: list[float], to: list[float]) -> str:
    """The median of `of` / `to`, its quartiles, and that of the best rounds of each.

    A machine that stops for a moment ruins a round, so extremes say little; the best say most.
    """
    ratios = sorted(a / b for a, b in zip(of, to, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    best = min(of) / min(to)
    return f"{statistics.median(ratios):.2f} [{low:.2f}..{high:.2f}], best {best:.2f},"


def matrix_product(where: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A call that multiplies square matrices, and its FLOPs: the most a network could reach."""
    side = MATRIX_SIDE[where.type]
    left, right = (torch.randn(side, side, device=where).to(dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(MATRIX_REPEATS):
            torch.mm(left, right)

    return multiply, 2.0 * side**3 * MATRIX_REPEATS


def as_launched() -> None:
    """Starts this program anew in the environment that the local launcher gives to one process.

    Nothing that the present one says is changed. The memory allocator and the thread pools read it
    once, as a process starts.
    """
    missing = {k: v for k, v in environment(processes=1).items() if k not in os.environ}
    if missing:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})
