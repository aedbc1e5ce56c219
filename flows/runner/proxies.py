"""Proxies: this machine is reached without one, and a proxy that cannot be used is a sentence.

Every HTTP client takes proxies from the environment (http_proxy, https_proxy, all_proxy and
no_proxy, in either case), each by rules of its own. So the environment is set right, once, for
this process and for all that it launches.
"""

import os
import urllib.request
from collections.abc import Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flows.config.load import tracking_uri
from flows.config.pretrained import is_fetched
from flows.config.run import RunConfig
from videoldm_core.errors import UserError

if TYPE_CHECKING:
    from videoldm_core.cascade.stage import Preset

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HTTP, SOCKS = ("http", "https"), ("socks5", "socks5h")
# What httpx, websockets and requests need to speak SOCKS: modules, and how pip calls them.
SOCKS_MODULES = {"socksio": "socksio", "python_socks": "python-socks", "socks": "PySocks"}


def servers_of(run: RunConfig, table: "Preset") -> dict[str, str]:
    """The servers that a run talks to: name in a sentence -> address."""
    servers = {"MLflow": tracking_uri(run), "Prefect": os.environ.get("PREFECT_API_URL", "")}
    if is_fetched(table):
        servers["the hub"] = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return servers


def settle_proxies(servers: Mapping[str, str]) -> None:
    """Keeps this machine's own addresses off proxies; drops a proxy that is no use and not needed.

    httpx reads every proxy of the environment, and fails for one that it cannot use even where
    only this machine's servers are asked.

    Args:
        servers: see `servers_of`.

    Raises:
        UserError: a server is reached through a proxy that cannot be used here.
    """
    keep_loopback_direct()
    proxies = urllib.request.getproxies()
    problems = {kind: _problem(proxies.get(kind, "")) for kind in (*HTTP, "all")}
    for server, address in servers.items():
        kind = _kind_used(address, proxies)
        if kind and problems[kind]:
            raise UserError(_sentence(kind, problems[kind], server, address))
    for kind in (kind for kind, problem in problems.items() if problem):
        for name in (f"{kind}_proxy", f"{kind}_proxy".upper()):
            os.environ.pop(name, None)


def keep_loopback_direct() -> None:
    """Adds this machine's own names to no_proxy and NO_PROXY, for us and for what we launch."""
    given = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    for name, value in given.items():
        # The one that is not there says the same: clients differ in which of them they read.
        other = given[name.swapcase()]
        os.environ[name] = _with_loopback((value if value is not None else other) or "")


def is_loopback(address: str) -> bool:
    """Whether an address (http://127.0.0.1:4200/api) is one of this machine's own."""
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def without_login(address: str) -> str:
    """An address as it may be shown: what may be a user name and password in it is left out."""
    before, separator, rest = address.rpartition("@")
    scheme, slashes, _ = before.partition("://")
    return f"{scheme if slashes else ''}{slashes}***{separator}{rest}" if separator else address


def _with_loopback(no_proxy: str) -> str:
    """A list of hosts with this machine's in it, without what httpx fails to read.

    [::1] is written as ::1. IPv6 networks (fd00::/8) are left out: httpx does not start with one,
    and no other client heeds it.
    """
    if no_proxy.strip() == "*":  # no proxy at all; as one of several, clients differ
        return no_proxy
    entries = [_unbracketed(entry.strip()) for entry in no_proxy.split(",")]
    readable = [entry for entry in entries if entry and _is_readable(entry)]
    return ",".join(dict.fromkeys([*readable, *LOOPBACK]))


def _unbracketed(entry: str) -> str:
    return entry[1:-1] if entry.startswith("[") and entry.endswith("]") else entry


def _is_readable(entry: str) -> bool:
    """Whether httpx reads an entry: a name or address, perhaps with a port or a scheme."""
    try:
        if "://" in entry:
            return urlsplit(entry).port != 0
        if entry.count(":") > 1:
            return bool(ip_address(entry))
    except ValueError:
        return False
    host, colon, port = entry.partition(":")
    return not colon or bool(host) and port.isdigit() and int(port) < 1 << 16


def _kind_used(address: str, proxies: Mapping[str, str]) -> str | None:
    """Which of http, https and all sends `address` through a proxy; None for a direct one."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in HTTP or is_loopback(address) or urllib.request.proxy_bypass(host):
        return None
    return next((kind for kind in (parts.scheme, "all") if proxies.get(kind)), None)


def _problem(proxy: str) -> str:
    """Why a proxy cannot be used here, and what would change that; empty where it can."""
    scheme = proxy.partition("://")[0].lower() if "://" in proxy else "http"
    if not proxy or scheme in HTTP:
        return ""
    if scheme not in SOCKS:
        return f"expected one that begins with {', '.join(f'{s}://' for s in (*HTTP, *SOCKS))}"
    missing = [package for module, package in SOCKS_MODULES.items() if not find_spec(module)]
    return f"SOCKS needs packages that are missing: pip install {' '.join(missing)}" * bool(missing)


def _sentence(kind: str, problem: str, server: str, address: str) -> str:
    name = f"{kind}_proxy"
    name = name if os.environ.get(name) else name.upper()
    host = urlsplit(address).hostname
    return (
        f"{name} = {without_login(os.environ[name])!r} cannot be used to reach {server} at "
        f"{without_login(address)!r} ({problem}); or unset {name}, or add {host!r} to no_proxy."
    )
