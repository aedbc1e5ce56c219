"""The addresses of a run: which are taken, and how those of its own files are written."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from videoldm_core.errors import UserError, without_secrets
from videoldm_core.system.addresses import checked_address

TRACKING_CREDENTIALS = (
    "give them as MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (of a database, as its "
    "driver reads them: PGPASSWORD)"
)
PREFECT_DATABASE = "PREFECT_API_DATABASE_CONNECTION_URL"
_OF_S3 = "give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
# What the libraries read by themselves, and repeat in messages, logs and their own databases.
ENVIRONMENT = {
    "PREFECT_API_URL": "give them as PREFECT_API_KEY or PREFECT_API_AUTH_STRING",
    "AWS_ENDPOINT_URL": _OF_S3,
    "AWS_ENDPOINT_URL_S3": _OF_S3,
    "MLFLOW_S3_ENDPOINT_URL": _OF_S3,
    "HF_ENDPOINT": "give a token as HF_TOKEN",
}


def check_environment() -> None:
    """Refuses an address of the environment that has more in it than where something is.

    Raises:
        UserError: never repeats the address.
    """
    for name, credentials in ENVIRONMENT.items():
        if os.environ.get(name):
            checked_address(os.environ[name], what=name, credentials=credentials)


def check_addresses(run: dict[str, Any]) -> None:
    """Refuses what must not be stored: a run is kept in its folder, in reports and in MLflow.

    Args:
        run: its fields, as JSON.

    Raises:
        UserError: never repeats the address.
    """
    if run["tracking_uri"] is not None:
        checked_address(run["tracking_uri"], what="tracking_uri", credentials=TRACKING_CREDENTIALS)
    for key, text in _texts(run):
        if "://" in text and without_secrets(text) != text:
            raise UserError(
                f"{key} holds an address with more than scheme, host, port and path (it is not "
                "repeated here, as it may hold a secret), which would be stored with the run; "
                "give a file or folder of this machine, or the address alone."
            )


def check_local_tracking(out: Path, tracking_uri: str | None) -> None:
    """Refuses a folder in which MLflow would look for another: it decodes paths of files twice.

    Raises:
        UserError: names the folder.
    """
    is_local = (tracking_uri or "sqlite:").startswith("sqlite:")
    found = re.search("%[0-9A-Fa-f]{2}", str(out.absolute()))
    if is_local and found:
        raise UserError(
            f"out = {str(out)!r}: MLflow takes {found[0]!r} in the path of its files for another "
            "character, and would not find them; give an out=FOLDER without it, or name an MLflow "
            "server in tracking_uri."
        )


def sqlite_address(file: Path, driver: str = "sqlite") -> str:
    """The address of a SQLite database, whatever characters its path is made of.

    As it is, where that is read right: MLflow makes the folders that stand in the address, without
    decoding it first.
    """
    from sqlalchemy import URL, make_url

    for path in (str(file), str(file).replace("?", "%3F")):
        plain = f"{driver}:///{path}"
        if make_url(plain) == URL.create(driver, database=str(file)):
            return plain
    return URL.create(driver, database=str(file)).render_as_string(hide_password=False)


def prefect_database(home: Path) -> dict[str, str]:
    """The setting of Prefect's database, for a PREFECT_HOME whose name it would misread."""
    file, driver = home / "prefect.db", "sqlite+aiosqlite"
    address = sqlite_address(file, driver)
    return {} if address == f"{driver}:///{file}" else {PREFECT_DATABASE: address}


@contextmanager
def without_folders_as_encoded(address: str) -> Iterator[None]:
    """Removes the empty folders that MLflow makes in the block, see `sqlite_address`."""
    named = Path(address.removeprefix("sqlite:///")).parent
    missing = [folder for folder in (named, *named.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing if "%" in address else ():
            with suppress(OSError):  # it is in use, or was never made
                folder.rmdir()


def path_of(address: str) -> Path | None:
    """The path that a file: address means; None of any other."""
    parsed = urlparse(address)
    return Path(url2pathname(parsed.path)) if parsed.scheme == "file" else None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text of nested values, with the dotted key that leads to it."""
    if isinstance(value, str):
        yield key, value
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for name, inner in items:
        yield from _texts(inner, f"{key}.{name}" if key else str(name))
