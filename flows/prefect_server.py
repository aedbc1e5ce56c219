"""The embedded Prefect server: started when something is due and no server is named, gone with us.

Prefect can start one itself, but in our process group: an interrupt from the terminal would end it
before the flow could report its end to it, and a killed command would leave it behind.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

from flows.launch import leash
from flows.quiet import silence_prefect
from videoldm_core.errors import UserError
from videoldm_core.files import disk_error
from videoldm_core.interpreter import python_command, python_environment

START_S = 180.0  # a busy machine
GRACE_S = 3.0
# Not "ephemeral", which would serve no pages. What looks after schedules has nothing to do here.
SERVER = {
    "PREFECT__SERVER_FINAL": "1",
    **{
        f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false"
        for service in (
            "SCHEDULER",
            "LATE_RUNS",
            "CANCELLATION_CLEANUP",
            "PAUSE_EXPIRATIONS",
            "FOREMAN",
            "TRIGGERS",
        )
    },
}

_held: list[subprocess.Popen] = []  # the pipes that keep servers alive; closed as the process ends


def use_prefect(out: Path) -> str | None:
    """Makes Prefect ready to run a flow; must come before Prefect is imported.

    Returns:
        The address of the embedded server's pages; None where the user's own server is used.

    Raises:
        UserError: the embedded server does not start.
    """
    silence_prefect(out)
    if os.environ.get("PREFECT_API_URL") or _is_told_already():
        return None
    address = f"http://127.0.0.1:{_free_port()}"
    log = Path(os.environ["PREFECT_HOME"]) / "server.log"
    server = _start(address, log)
    _held.append(server)
    _wait_for(address, server, log)
    os.environ["PREFECT_API_URL"] = f"{address}/api"
    return address


def _is_told_already() -> bool:
    """Whether somebody in this process has set a server, as tests do."""
    if "prefect" not in sys.modules:
        return False
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value() is not None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _start(address: str, log: Path) -> subprocess.Popen:
    host, port = address.removeprefix("http://").split(":")
    command = [*python_command(), leash.__file__, str(GRACE_S), *python_command(), "-m", "uvicorn"]
    # uvicorn, and Prefect's migrations, put the directory they run in before all other modules.
    home = log.parent.absolute()
    command += [
        "--app-dir",
        str(home),
        "--factory",
        "prefect.server.api.server:create_app",
        "--host",
        host,
        "--port",
        port,
    ]
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            return subprocess.Popen(
                [*command, "--log-level", "error", "--lifespan", "on"],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    **SERVER,
                    **python_environment(),
                    "PREFECT_HOME": str(home),
                    "PREFECT_UI_API_URL": f"{address}/api",
                    # By default its pages are unpacked beside the package, which may be read-only.
                    "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
                    leash.MARK: uuid.uuid4().hex,
                },
                start_new_session=True,
                cwd=home,
            )
    except OSError as error:
        raise disk_error(log, error) from error


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/api/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise UserError(
        f"The embedded Prefect server did not start (its log is {str(log)!r}); "
        "run the command again, or name a running server in PREFECT_API_URL."
    )
