"""The embedded Prefect server: started when something is due and no server is named, gone with us.

Prefect can start one itself, but in our process group: an interrupt from the terminal would end it
before the flow could report its end to it, and a killed command would leave it behind.

Other users of this machine can reach it too. So it serves on a socket that this process holds until
it ends, which nobody else can answer on, and answers only who knows a password made for the run.
"""

import atexit
import contextlib
import errno
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import uuid
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

from flows.config.addresses import prefect_database
from flows.launch import supervisor
from flows.runner.prefect_api import authorization, check_server
from flows.runner.telemetry import silence_prefect
from videoldm_core.errors import UserError
from videoldm_core.system.files import append_private, disk_error, make_folder
from videoldm_core.system.interpreter import python_command, python_environment

START_S = 180.0  # a busy machine
ASK_S = 5.0
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
# Meant for another server: keys, and where below its address it serves. Empty, not absent, so that
# a profile in the user's PREFECT_HOME does not name them either.
NOT_OURS = {
    "PREFECT_API_KEY": "",
    "PREFECT_CLIENT_CUSTOM_HEADERS": "{}",
    "PREFECT_SERVER_API_BASE_PATH": "",
}

# The pipes that keep servers alive, and their sockets; closed as the process ends.
_held: list[tuple[subprocess.Popen, socket.socket]] = []


class Page(NamedTuple):
    """Where a person looks at the run, and the file that holds the password it asks for."""

    address: str
    password: Path


def use_prefect(out: Path) -> Page | None:
    """Makes Prefect ready to run a flow; must come before Prefect is imported.

    Returns:
        The embedded server's page; None where the user's own server is used.

    Raises:
        UserError: the embedded server does not start, or the user's own cannot be used.
    """
    silence_prefect(out)
    if named := os.environ.get("PREFECT_API_URL"):
        check_server(named)
        return None
    if _is_told_already():
        return None
    password = secrets.token_urlsafe(24)
    file = _written(out / "prefect-password.txt", password)
    listener = _own_socket()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    log = Path(os.environ["PREFECT_HOME"]) / "server.log"
    server = _start(listener, password, log)
    _held.append((server, listener))
    threading.Thread(target=_refuse_after, args=(server, listener), daemon=True).start()
    _wait_for(listener, password, server, log)
    os.environ.update(NOT_OURS, PREFECT_API_URL=f"{address}/api", PREFECT_API_AUTH_STRING=password)
    return Page(address, file)


def _is_told_already() -> bool:
    """Whether somebody in this process has set a server, as tests do."""
    if "prefect" not in sys.modules:
        return False
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value() is not None


def _written(file: Path, password: str) -> Path:
    """A file that only this user can read, gone when the process ends as it should."""
    try:
        make_folder(file.parent, mode=0o700)
        file.unlink(missing_ok=True)  # a killed run's
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as writing:
            writing.write(f"{password}\n")
    except OSError as error:
        raise disk_error(file, error) from error
    atexit.register(file.unlink, missing_ok=True)
    return file


def _own_socket() -> socket.socket:
    """A bound socket whose port nobody else gets while this process lives.

    The kernel keeps a port that was asked for by its number, even for a socket that was shut down.
    """
    while True:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            address = found.getsockname()
        listener = socket.socket()
        try:
            listener.bind(address)
        except OSError as error:  # somebody else was faster
            listener.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return listener


def _refuse_after(server: subprocess.Popen, listener: socket.socket) -> None:
    """Lets clients of a server that has died fail at once, instead of waiting for an answer."""
    server.wait()
    with contextlib.suppress(OSError):  # it died before it listened
        listener.shutdown(socket.SHUT_RDWR)


def _start(listener: socket.socket, password: str, log: Path) -> subprocess.Popen:
    port = listener.getsockname()[1]
    command = [*python_command(), supervisor.__file__, str(GRACE_S), *python_command()]
    command += ["-m", "flows.runner.prefect_app", str(listener.fileno())]
    home = log.parent.absolute()
    try:
        make_folder(log.parent, mode=0o700)
        with append_private(log) as file:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={
                    **prefect_database(home),
                    **os.environ,
                    **SERVER,
                    **NOT_OURS,
                    **python_environment(),
                    "PREFECT_HOME": str(home),
                    "PREFECT_SERVER_API_AUTH_STRING": password,
                    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://localhost:{port}",
                    "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
                    # By default its pages are unpacked beside the package, which may be read-only.
                    "PREFECT_UI_STATIC_DIRECTORY": str(home / "ui"),
                    supervisor.MARK: uuid.uuid4().hex,
                },
                start_new_session=True,
                cwd=home,  # Prefect's migrations put it before all other modules
                pass_fds=[listener.fileno()],
            )
    except OSError as error:
        raise disk_error(log, error) from error


def _wait_for(listener: socket.socket, password: str, server: subprocess.Popen, log: Path) -> None:
    """Waits until the server answers who knows the password, and nobody else."""
    port = listener.getsockname()[1]
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        answer = _status(port, password)
        if answer == 200 and _status(port, secrets.token_urlsafe(24)) == 401:
            return
        time.sleep(0.1)
    raise UserError(
        f"The embedded Prefect server did not start (its log is {str(log)!r}); "
        "run the command again, or name a running server in PREFECT_API_URL."
    )


def _status(port: int, password: str) -> int | None:
    """How the server answers a question with this password; None while it does not."""
    connection = HTTPConnection("127.0.0.1", port, timeout=ASK_S)
    try:
        connection.request(
            "GET", "/api/admin/version", headers={"Authorization": authorization(password)}
        )
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()
