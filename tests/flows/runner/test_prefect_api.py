"""A Prefect server that the user names: used, or refused in one sentence before anything starts."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import prefect
import pytest
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    temporary_settings,
)

from flows.config.load import load_run
from flows.doctor import examine
from flows.runner.prefect_api import check_server
from flows.runner.session import work
from tests.flows.runner.test_session import FakeLauncher
from videoldm_core.errors import UserError


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """answering(status, body): the address of a server that gives this one answer."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int = 200, body: str = "", password: str | None = None) -> str:
        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_known = password is None or password in self.headers.get("Authorization", "")
                self.send_response(status if is_known else 401)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *arguments) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/api"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def sentence(address: str) -> str:
    with pytest.raises(UserError) as raised:
        check_server(address)
    said = str(raised.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (401, "", "does not accept this user (HTTP 401; it expects PREFECT_API_AUTH_STRING"),
        (403, "", "does not accept this user (HTTP 403"),
        (404, "{}", "is no Prefect API (HTTP 404; expected the address of a Prefect API"),
        (405, "{}", "is no Prefect API (HTTP 405"),
        (500, "", "answers HTTP 500"),
        (200, "<!doctype html><p>hello", "is no Prefect API (expected the address of a Prefect"),
        (200, "", "is no Prefect API"),
        (200, '{"status": "fine"}', "is no Prefect API"),
        (200, '"fine"', "is no Prefect API"),
        (200, '"2.20.3"', f"is Prefect '2.20.3' (this is Prefect {prefect.__version__}, and the"),
        (200, '"4.0.0"', "is Prefect '4.0.0'"),
    ],
)
def test_a_server_that_is_no_use_is_one_sentence_with_its_address(status, body, why, answering):
    address = answering(status, body)
    said = sentence(address)
    assert said.startswith(f"PREFECT_API_URL = {address!r} {why}"), said
    assert "unset it: a run without it starts a server of its own" in said


@pytest.mark.parametrize("version", [prefect.__version__, "3.0.0"])
def test_a_prefect_of_the_same_major_version_is_used(version, answering):
    assert check_server(answering(200, json.dumps(version))) is None
    assert check_server(answering(200, json.dumps(version)) + "/") is None


def test_nothing_at_the_address_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    assert "does not answer" in sentence(f"http://127.0.0.1:{port}/api")
    assert "does not answer" in sentence("http://no-such-host.invalid:4200/api")


def test_a_server_that_never_answers_is_one_sentence(monkeypatch):
    monkeypatch.setattr("flows.runner.prefect_api.ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = sentence(f"http://127.0.0.1:{silent.getsockname()[1]}/api")
    assert "gives no answer within" in said


@pytest.mark.parametrize(
    "address",
    [
        "localhost:4200/api",
        "4200",
        "/api",
        "ftp://a/api",
        "http://",
        "http://a:b/api",
        "http://[::1",
    ]
    + ["http://a:0/api", "http://a b/api", "http://\x00/api"],
)
def test_what_is_no_address_is_one_sentence(address):
    said = sentence(address)
    assert said.startswith(f"PREFECT_API_URL = {address!r} ")


@pytest.mark.parametrize("address", ["http://u:secret@a:4200/api", "http://u:secret@[::1"])
def test_a_password_in_the_address_is_refused_and_never_repeated(address):
    said = sentence(address)
    assert "PREFECT_API_AUTH_STRING=USER:PASSWORD" in said
    assert "secret" not in said


def test_the_users_password_or_key_is_said_to_the_server_they_named(answering):
    known = answering(200, '"3.9.1"', password="Basic dTpw")  # u:p
    with temporary_settings({PREFECT_API_AUTH_STRING: "u:p"}):
        check_server(known)
    with temporary_settings({PREFECT_API_AUTH_STRING: "u:other"}):
        said = sentence(known)
    assert "HTTP 401" in said
    assert "other" not in said
    with temporary_settings({PREFECT_API_KEY: "pnu_1"}):
        check_server(answering(200, '"3.9.1"', password="Bearer pnu_1"))


def test_a_run_asks_before_anything_starts_and_so_does_the_doctor(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    run = load_run("tiny", [f"out={tmp_path / 'out'}"])
    launcher = FakeLauncher()
    with pytest.raises(UserError, match="^PREFECT_API_URL = 'http://127.0.0.1:9/api' does not an"):
        work(run, launcher=launcher)
    assert launcher.ran == []
    assert not (run.out / "mlflow.db").exists()
    found = {finding.what: finding for finding in examine(run)}["Prefect"]
    assert found.verdict == "bad"
    assert found.found.startswith("PREFECT_API_URL = 'http://127.0.0.1:9/api' does not answer")
