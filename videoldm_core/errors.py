"""Errors that a user, a file or a cluster can cause; all else is a bug, with a traceback."""


class UserError(Exception):
    """One sentence for the user: what is wrong, the value, what was expected and what to do.

    It is one line, whatever the names of files and the messages of libraries in it hold.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class ShardError(UserError):
    """A shard or a store on disk is not what its manifest says."""


def reason_of(error: BaseException) -> str:
    """The first line of what a library's error says, without a full stop."""
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def one_line(text: str) -> str:
    """`text` with escapes for line breaks, colours and all else that is not printed as it is."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
