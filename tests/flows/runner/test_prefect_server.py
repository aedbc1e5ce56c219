"""The embedded Prefect server outlives an interrupt, not its command, and serves that alone."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from flows.runner import prefect_server
from flows.runner.prefect_api import authorization
from flows.runner.prefect_server import use_prefect
from videoldm_core.errors import UserError

ROOT = Path(__file__).parents[3]
HOLDER = """
import json, os, signal, sys, time
from pathlib import Path
from flows.runner.prefect_server import use_prefect
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
page = use_prefect(Path(sys.argv[1]))
from prefect.client.orchestration import get_client
said = dict(get_client(sync_client=True)._client.headers)
print(json.dumps([page.address, str(page.password), said]), flush=True)
for line in sys.stdin:
    pass
"""
KEY = "pnu_a_key_of_prefect_cloud"


class Held(NamedTuple):
    """A process that holds a server."""

    process: subprocess.Popen
    address: str
    password: Path
    headers: dict[str, str]  # of its Prefect client

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def ask(self, path: str, *, method: str = "GET", **headers: str | None) -> tuple[int, Any, str]:
        """Status, headers and body of an answer; a header of None is left out."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": f"127.0.0.1:{self.port}", **headers}.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        with contextlib.closing(connection):
            return answer.status, answer.headers, answer.read().decode()

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("/api/health")[0] == 200
        return False


def hold(out: Path) -> Held:
    environment = {name: text for name, text in os.environ.items() if "PREFECT" not in name}
    environment["PREFECT_API_KEY"] = KEY
    environment["PREFECT_CLIENT_CUSTOM_HEADERS"] = json.dumps({"X-Door": KEY})
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    address, password, headers = json.loads(process.stdout.readline())
    return Held(process, address, Path(password), headers)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    """A server for the tests that only ask it."""
    held = hold(tmp_path_factory.mktemp("held"))
    yield held
    held.process.communicate()  # its input ends, and so does it
    assert not held.password.exists(), "the password goes with the server"


def test_the_server_answers_after_an_interrupt_and_ends_with_a_killed_command(tmp_path):
    held = hold(tmp_path)
    assert held.answers()
    os.killpg(held.process.pid, signal.SIGINT)  # what a terminal does
    assert held.process.stdout
    assert held.process.stdout.readline() == "interrupted\n"
    assert held.answers()
    held.process.kill()
    held.process.communicate()
    deadline = time.monotonic() + 60
    while held.answers():
        assert time.monotonic() < deadline, "the server is still there"
        time.sleep(0.1)
    assert (tmp_path / "prefect" / "prefect.db").exists()


def test_the_address_shows_prefects_page_which_asks_this_server_alone(held):
    status, headers, _ = held.ask("/", Accept="text/html")
    assert (status, headers["Location"]) == (307, "/v2/")
    status, headers, page = held.ask("/v2/", Accept="text/html")
    assert (status, "<title>Prefect" in page) == (200, True)
    settings = json.loads(held.ask("/ui-settings")[2])
    assert settings["api_url"] == f"{held.address}/api", "not port 4200"
    assert settings["auth"] == "BASIC", "the page asks for the password"
    asked = headers["Content-Security-Policy"].partition(";")[0].split()
    own = [f"{scheme}://{host}:{held.port}" for scheme in ("http", "ws")
           for host in ("127.0.0.1", "localhost")]  # fmt: skip
    assert asked == ["connect-src", "'self'", *own], "it would report to a statistics service"


def test_only_who_knows_the_password_is_answered(held):
    password = held.password.read_text().strip()
    assert len(password) >= 32
    assert held.ask("/api/admin/version", Authorization=authorization(password))[0] == 200
    for other in ("", "admin:pass", password[:-1], password.swapcase()):
        assert held.ask("/api/admin/version", Authorization=authorization(other))[0] == 401
    assert held.ask("/api/admin/version")[0] == 401
    assert held.ask("/api/flow_runs/filter", method="POST")[0] == 401


def test_nobody_else_can_read_the_password(held):
    password = held.password.read_text().strip()
    assert held.password.stat().st_mode & 0o777 == 0o600
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert password not in " ".join(process.cmdline())
    files = [path for path in held.password.parent.rglob("*") if path.is_file()]
    assert len(files) > 3
    holding = [path for path in files if password.encode() in path.read_bytes()]
    assert holding == [held.password]


def test_the_users_key_for_another_server_stays_with_them(held):
    assert held.headers["authorization"] == authorization(held.password.read_text().strip())
    said = json.dumps(held.headers) + base64.b64decode(held.headers["authorization"][6:]).decode()
    assert KEY not in said
    assert "x-door" not in held.headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{}", "127.0.0.1", "0:{}", "", None])
def test_a_request_that_names_another_host_is_refused(host, held):
    named = host and host.format(held.port)
    for path in ("/", "/api/health", "/api/admin/version", "/ui-settings"):
        assert held.ask(path, Host=named)[0] in (400, 403)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://127.0.0.1:{}", "http://localhost:1", "null", ""]
)
def test_a_page_of_another_origin_is_refused(origin, held):
    origin = origin.format(held.port)
    password = authorization(held.password.read_text().strip())
    for method in ("GET", "POST", "OPTIONS"):
        status, headers, _ = held.ask(
            "/api/flow_runs/filter", method=method, Origin=origin, Authorization=password
        )
        assert status == 403
        assert "access-control-allow-origin" not in headers
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade |= {"Sec-WebSocket-Key": base64.b64encode(b"0" * 16).decode()}
    upgrade |= {"Sec-WebSocket-Protocol": "prefect"}
    assert held.ask("/api/events/out", Origin=origin, **upgrade)[0] == 403
    assert held.ask("/api/events/out", Origin=held.address, **upgrade)[0] == 101


def test_the_page_may_be_opened_as_localhost_too(held):
    host, origin = f"localhost:{held.port}", f"http://localhost:{held.port}"
    assert held.ask("/ui-settings", Host=host)[0] == 200
    status, headers, _ = held.ask("/api/health", Origin=origin)
    assert (status, headers["access-control-allow-origin"]) == (200, origin)


def test_the_server_listens_on_this_machine_alone(held):
    family = [psutil.Process(held.process.pid)]
    family += family[0].children(recursive=True)
    assert len(family) == 3, "the command, the leash and the server"
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in family
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
    }
    assert listening == {("127.0.0.1", held.port)}


def is_free(port: int) -> bool:
    """Whether another program could take a port; it may try every way there is."""
    for option in (None, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        for host in ("127.0.0.1", "0.0.0.0"):
            with socket.socket() as other:
                if option:
                    other.setsockopt(socket.SOL_SOCKET, option, 1)
                with contextlib.suppress(OSError):
                    other.bind((host, port))
                    other.listen()
                    return True
    return False


def test_nobody_takes_the_servers_port_before_it_serves_or_after_it_died():
    listener = prefect_server._own_socket()
    port = listener.getsockname()[1]
    with contextlib.closing(listener):
        assert not is_free(port), "bound"
        listener.listen()
        assert not is_free(port), "serving"
        with subprocess.Popen(["true"]) as died:
            prefect_server._refuse_after(died, listener)
        assert not is_free(port), "died"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    assert is_free(port)


def test_a_server_that_lets_everybody_in_is_not_believed(tmp_path, monkeypatch):
    class Open(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments) -> None:
            pass

    monkeypatch.setattr(prefect_server, "START_S", 1.0)
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), Open) as server,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="The embedded Prefect server did not start"):
            prefect_server._wait_for(server.socket, "password", process, tmp_path / "log")
        server.shutdown()


def test_the_folder_of_a_run_may_have_any_name(tmp_path):
    name = "a%2Fb?c=d#e 'f' \"ü\": g"
    held = hold(tmp_path / name)
    try:
        assert (tmp_path / name / "prefect" / "prefect.db").stat().st_size > 0
        assert [path.name for path in tmp_path.iterdir()] == [name], "no table lies elsewhere"
    finally:
        held.process.kill()
        held.process.communicate()


def test_a_named_server_is_used(held, tmp_path, monkeypatch):
    from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", f"{held.address}/api")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    with temporary_settings({PREFECT_API_AUTH_STRING: held.password.read_text().strip()}):
        assert use_prefect(tmp_path) is None
    assert not (tmp_path / "prefect").exists()
    assert not (tmp_path / "prefect-password.txt").exists()
