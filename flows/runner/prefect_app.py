"""The embedded Prefect server's own process: Prefect's app, for this machine's pages and programs.

Run as `python -m flows.runner.prefect_app FD`: FD is the bound socket that it inherits.
"""

import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

REFUSAL = b"This server answers under its own address only.\n"


class OwnAddressOnly:
    """Refuses requests that name another host, or that a page of another origin makes.

    A page from elsewhere, open in a browser on this machine, could otherwise ask the server through
    a name of its own that resolves to this machine. Prefect's pages are kept from asking elsewhere:
    they report to a statistics service even where its settings say not to.
    """

    def __init__(self, app: App, port: int) -> None:
        self._app = app
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._origins = {f"http://{host}" for host in self._hosts}
        asked = [f"{scheme}://{host}" for scheme in ("http", "ws") for host in sorted(self._hosts)]
        policy = f"connect-src 'self' {' '.join(asked)}; frame-ancestors 'none'"
        self._policy = (b"content-security-policy", policy.encode())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Hands a request to the own address on; refuses any other with status 403."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif not self._is_own(scope["headers"]):
            await _refuse(scope["type"], send)
        else:
            await self._app(scope, receive, self._with_policy(send))

    def _is_own(self, headers: list[tuple[bytes, bytes]]) -> bool:
        hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        origins = [value.decode("latin-1").lower() for name, value in headers if name == b"origin"]
        return len(hosts) == 1 and hosts[0] in self._hosts and self._origins.issuperset(origins)

    def _with_policy(self, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), self._policy]
            await send(message)

        return sending


async def _refuse(kind: str, send: Send) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(REFUSAL)).encode()),
    ]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": REFUSAL})


def main() -> None:
    """Serves on the inherited socket until the process is ended."""
    import uvicorn
    from prefect.server.api.server import create_app

    listener = socket.socket(fileno=int(sys.argv[1]))
    app = OwnAddressOnly(create_app(), port=listener.getsockname()[1])
    config = uvicorn.Config(app, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
