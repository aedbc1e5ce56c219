"""Errors that a user, a file or a cluster can cause; all else is a bug, with a traceback."""


class UserError(Exception):
    """One sentence for the user: what is wrong, the value, what was expected and what to do."""


class ShardError(UserError):
    """A shard or a store on disk is not what its manifest says."""


def reason_of(error: Exception) -> str:
    """The first line of what a library's error says, without a full stop."""
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
