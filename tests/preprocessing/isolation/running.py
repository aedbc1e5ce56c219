"""One call of a function in a child process, as tests make it."""

from preprocessing.isolation.child import Limits
from preprocessing.isolation.workers import MEMORY_BYTES, Call, Workers
from preprocessing.video.damage import DecodeError
from videoldm_core.errors import UserError

GENEROUS = Limits(idle_cpu_s=60, idle_wall_s=300, total_cpu_s=600)


def run_isolated(function, *args, memory_bytes=MEMORY_BYTES, limits=GENEROUS, **expected):
    """One call in a pool of one: its value, or the error it ended with."""
    with Workers(1, errors=(UserError, DecodeError), memory_bytes=memory_bytes) as workers:
        (outcome,) = workers.run(function, [Call(args, limits, **expected)])
    if outcome.error:
        raise outcome.error
    return outcome.value
