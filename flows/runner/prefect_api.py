"""A Prefect server that the user names: asked before anything starts, refused in a sentence."""

import base64
from typing import Any
from urllib.parse import urlsplit

from videoldm_core.errors import UserError, reason_of

ANSWER_S = 20.0
EXPECTED = "expected the address of a Prefect API, as http://HOST:4200/api"


def check_server(address: str) -> None:
    """Asks a Prefect server whether a run can use it; Prefect must know where it keeps its files.

    Args:
        address: as PREFECT_API_URL has it.

    Raises:
        UserError: no address, or one with a password in it; nothing answers there; what answers
            is no Prefect, another major version, or does not accept what we say who we are.
    """
    _check_address(address)
    import httpx
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), _client(address) as client:
            _ask(client, address)
    except httpx.HTTPStatusError as error:
        raise _refused(address, error.response.status_code) from None
    except httpx.TimeoutException:
        raise _unusable(address, f"gives no answer within {ANSWER_S:.0f} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unusable(address, f"does not answer ({reason_of(error)})") from None
    except ValueError:  # a page, or other JSON than expected
        raise _unusable(address, f"is no Prefect API ({EXPECTED})") from None


def authorization(password: str) -> str:
    """The header that says Prefect's auth string."""
    return f"Basic {base64.b64encode(password.encode()).decode()}"


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        is_address = bool(parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
        has_login = "@" in parts.netloc
    except ValueError:  # of a port, or half an IPv6 address
        is_address, has_login = False, "@" in address
    if has_login:
        raise UserError(
            "PREFECT_API_URL holds a user name or password, which would be shown and logged; give "
            "the address alone, and them as PREFECT_API_AUTH_STRING=USER:PASSWORD."
        )
    if not is_address:
        raise _unusable(address, f"is no address ({EXPECTED})")


def _client(address: str) -> Any:
    """Prefect's own client, as it will be used: with the user's certificates, keys and headers."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY

    return SyncPrefectClient(
        address,
        auth_string=PREFECT_API_AUTH_STRING.value(),
        api_key=PREFECT_API_KEY.value(),
        httpx_settings={"timeout": ANSWER_S},
    )


def _ask(client: Any, address: str) -> None:
    import prefect
    from prefect.client.base import ServerType

    if client.server_type == ServerType.CLOUD:  # always compatible; the count needs a valid key
        client.request("POST", "/flows/count", json={})
        return
    version = client.request("GET", "/admin/version").json()
    if not isinstance(version, str) or not version[:1].isdigit():
        raise ValueError
    if version.split(".")[0] != prefect.__version__.split(".")[0]:
        ours = f"this is Prefect {prefect.__version__}, and the major version must be the same"
        raise _unusable(address, f"is Prefect {version!r} ({ours})")


def _refused(address: str, status: int) -> UserError:
    if status in (401, 403):
        return _unusable(
            address,
            f"does not accept this user (HTTP {status}; it expects PREFECT_API_AUTH_STRING as its "
            "PREFECT_SERVER_API_AUTH_STRING says, Prefect Cloud a PREFECT_API_KEY)",
        )
    if status in (404, 405):
        return _unusable(address, f"is no Prefect API (HTTP {status}; {EXPECTED})")
    return _unusable(address, f"answers HTTP {status}")


def _unusable(address: str, why: str) -> UserError:
    return UserError(
        f"PREFECT_API_URL = {address!r} {why}; start that server or correct the address, or unset "
        "it: a run without it starts a server of its own."
    )
