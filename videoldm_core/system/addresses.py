"""Addresses as users write them: where something is, and never a secret to get there with.

An address is kept with the run, in reports and in MLflow, and printed. So it is scheme, host, port
and path, and nothing else: credentials belong in the environment.
"""

import re

from videoldm_core.errors import UserError

_HOST = r"[\w.-]+|\[[0-9A-Fa-f:.]+\]"
_PATH = r"[^?#;\\\x00-\x1f\x7f]*"  # as it is written; %3F is a question mark of a path
_ADDRESS = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]*://"
    # Behind a host no "@", which would end the password of a user without one.
    rf"(?:(?:{_HOST})(?::\d+)?(?:/(?!.*@){_PATH})?|/{_PATH})"
)


def checked_address(text: str, *, what: str, credentials: str) -> str:
    """`text`, if it is an address and nothing more.

    Args:
        what: it is, "tracking_uri".
        credentials: where a user name and password belong; "give them as ...".

    Raises:
        UserError: it has a user name, a password, a query, a fragment or parameters, or is no
            address. Never repeats it.
    """
    if _ADDRESS.fullmatch(text) is None:
        raise UserError(
            f"{what} is not just SCHEME://HOST:PORT/PATH (it is not repeated here, as it may hold "
            "a secret); give the address alone, since it is kept and printed: no user name, no "
            f"password, nothing behind '?', '#' or ';'; {credentials}."
        )
    return text
