"""Errors that a user, a file or a cluster can cause; all else is a bug, with a traceback."""

import re

HIDDEN = "..."
# An address in a text, and what may be secret in it: all before its last "@", since a password may
# hold any character, and all behind "?", "#" or ";". A path takes one of the two slashes away.
_USER = re.compile(r"(?<=[A-Za-z0-9]:)(//?)[^\s/]\S*@")
_REST = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*:/[^\s?#;]*[?#;])\S+")


class UserError(Exception):
    """One sentence for the user: what is wrong, the value, what was expected and what to do.

    It is one line, whatever the names of files and the messages of libraries in it hold, and what
    may be secret in an address that it repeats is left out.
    """

    def __init__(self, *said: str) -> None:
        super().__init__(*map(without_secrets, said))

    def __str__(self) -> str:
        return one_line(super().__str__())


class ShardError(UserError):
    """A shard or a store on disk is not what its manifest says."""


def without_secrets(text: str) -> str:
    """A text without what may be secret in its addresses: user, password, query, fragment."""
    return _REST.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", text))


def reason_of(error: BaseException) -> str:
    """The first line of what a library's error says, without a full stop or a secret."""
    lines = str(getattr(error, "strerror", None) or error).splitlines()
    return without_secrets(lines[0]).rstrip(".") if lines else type(error).__name__


def one_line(text: str) -> str:
    """`text` with escapes for line breaks, colours and all else that is not printed as it is."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
