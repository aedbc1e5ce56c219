"""Rights that a child process gives up before it reads what strangers made, as far as Linux allows.

No files are written, no core dumps, no network, no more memory than its share.
"""

import contextlib
import ctypes
import os
import resource

_NEW_NETWORK, _NEW_USER = 0x40000000, 0x10000000  # CLONE_NEWNET, CLONE_NEWUSER of sched.h
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS of prctl.h


def confine(memory_bytes: int) -> str:
    """Gives up the rights of this process for good; call it before any thread starts.

    Args:
        memory_bytes: of address space that it may use.

    Returns:
        Why the network is still within reach; empty where it is not.
    """
    still_reached = _leave_network()
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),  # of every file that it writes to
        (resource.RLIMIT_NPROC, 0),  # Linux does not hold root to it
        (resource.RLIMIT_AS, memory_bytes),
    ]
    for kind, most in limits:
        with contextlib.suppress(ValueError, OSError):  # some systems know no such limit
            resource.setrlimit(kind, (most, most))
    return still_reached


def _leave_network() -> str:
    """Moves into a network of its own without any interface; why not, where that is refused."""
    try:
        system = ctypes.CDLL(None, use_errno=True)
        system.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)  # no program that it starts gains rights
        # As root a user namespace would take away the right to read the files of other users.
        kinds = _NEW_NETWORK if os.geteuid() == 0 else _NEW_NETWORK | _NEW_USER
        if system.unshare(kinds) == 0:
            return ""
        return os.strerror(ctypes.get_errno())
    except (OSError, AttributeError):  # no such calls on this system
        return "this system has no namespaces"
