"""Servers of this machine are asked directly, whatever proxies the environment names."""

import contextlib
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import requests

from flows.config.load import load_run
from flows.config.stage_table import table_of
from flows.doctor import examine
from flows.runner.proxies import keep_loopback_direct, servers_of, settle_proxies, without_login
from flows.runner.session import work
from videoldm_core.data.storage import S3Storage
from videoldm_core.errors import UserError

ALL = "http_proxy=http://{} https_proxy=http://{} all_proxy=socks5://{}"
# What an environment may say; {} is the address of the proxy.
PROXIES = [
    "http_proxy=http://{}",
    "HTTP_PROXY=http://{}",
    "http_proxy={}",
    "https_proxy=http://{}",
    "ALL_PROXY=http://{}",
    "ALL_PROXY=socks5://{}",
    "all_proxy=socks5h://{}",
    "http_proxy=socks5://{}",
    "ALL_PROXY=socks://{}/",  # what desktops set
    ALL,
]
NO_PROXIES = ["", "corp.example", "*", "localhost", "[::1],fd00::/8,10.0.0.0/8", "a:b,*"]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch) -> None:
    """The environment of the tests names no proxy; what a test changes in it is undone."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for kind in ("http", "https", "all", "no"):  # code under test may set and unset them
        for name in (f"{kind}_proxy", f"{kind}_PROXY".upper()):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)


class Listener:
    """A proxy that counts who comes, and answers nobody."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def visits(self) -> int:
        """How many connections are waiting to be accepted."""
        self._socket.settimeout(0)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.accept()[0].close()
                count += 1
        return count

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def proxy() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def server() -> Iterator[str]:
    """A server of this machine that answers everything."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        do_HEAD = do_GET

        def log_message(self, *arguments) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{answering.server_port}"
        answering.shutdown()


def by_urllib(address: str) -> bool:
    opener = urllib.request.build_opener()  # urlopen keeps the proxies of its first call
    with opener.open(address, timeout=20) as answer:
        return answer.read() == b"ok"


def by_httpx(address: str) -> bool:
    return httpx.get(address, timeout=20).text == "ok"


def by_requests(address: str) -> bool:
    return requests.get(address, timeout=20).text == "ok"


def by_boto3(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> bool:
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return S3Storage("bucket", "prefix", cache=tmp_path).exists("x")


def by_websockets(address: str) -> bool:
    """The server does not speak the protocol: that it says so shows that it was asked."""
    from prefect._internal.websockets import websocket_connect
    from websockets.exceptions import InvalidStatus

    async def connect() -> None:
        async with websocket_connect(address.replace("http://", "ws://")):
            pass

    import asyncio

    with contextlib.suppress(InvalidStatus):
        asyncio.run(connect())
        return False
    return True


@pytest.mark.parametrize(
    ("named", "no_proxy"), [*((p, None) for p in PROXIES), *((ALL, n) for n in NO_PROXIES)]
)
def test_no_client_asks_a_proxy_for_a_server_of_this_machine(
    named, no_proxy, server, proxy, monkeypatch, tmp_path
):
    for setting in named.split():
        name, value = setting.split("=")
        monkeypatch.setenv(name, value.format(proxy.address))
    if no_proxy is not None:
        monkeypatch.setenv("no_proxy", no_proxy)
    settle_proxies({"MLflow": server, "Prefect": f"{server}/api"})
    for ask in (by_urllib, by_httpx, by_requests, by_websockets):
        assert ask(server), ask
    assert by_boto3(server, monkeypatch, tmp_path)
    assert proxy.visits() == 0


def test_the_listener_of_these_tests_notices_who_comes(server, proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    with contextlib.suppress(OSError):
        urllib.request.build_opener().open(server, timeout=0.2)
    assert proxy.visits() == 1


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_httpx_and_requests_reach_every_name_of_this_machine_directly(host, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    keep_loopback_direct()
    address = f"http://{host}:4200/"
    assert requests.utils.get_environ_proxies(address) == {}
    with httpx.Client() as client:
        assert client._transport_for_url(httpx.URL(address)) is client._transport


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, ("localhost,127.0.0.1,::1",) * 2),
        ({"no_proxy": "a.b, .c"}, ("a.b,.c,localhost,127.0.0.1,::1",) * 2),
        ({"NO_PROXY": "a.b"}, ("a.b,localhost,127.0.0.1,::1",) * 2),
        (
            {"no_proxy": "a", "NO_PROXY": "b"},
            ("a,localhost,127.0.0.1,::1", "b,localhost,127.0.0.1,::1"),
        ),
        ({"no_proxy": "*"}, ("*", "*")),
        ({"no_proxy": "::1,a:80,localhost"}, ("::1,a:80,localhost,127.0.0.1",) * 2),
        ({"no_proxy": "[::1],fd00::/8,a:b,x"}, ("::1,x,localhost,127.0.0.1",) * 2),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_users_own_exceptions_are_kept(given, kept, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    keep_loopback_direct()
    keep_loopback_direct()  # does the same when repeated
    assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == kept


@pytest.mark.parametrize(
    ("name", "proxy", "said"),
    [
        ("ALL_PROXY", "socks5://me:secret@proxy:1080", "pip install socksio python-socks PySocks"),
        ("all_proxy", "socks5h://proxy:1080", "pip install socksio"),
        ("https_proxy", "socks5://proxy", "pip install"),
        ("ALL_PROXY", "socks4://proxy:1080", "expected one that begins with http://, https://, so"),
        ("HTTPS_PROXY", "socks://proxy:1080", "expected one that begins with"),
    ],
)
def test_a_proxy_that_cannot_be_used_for_a_far_server_is_one_sentence(
    name, proxy, said, monkeypatch
):
    monkeypatch.setattr("flows.runner.proxies.find_spec", lambda module: None)
    monkeypatch.setenv(name, proxy)
    with pytest.raises(UserError) as raised:
        settle_proxies({"MLflow": "https://mlflow.corp:5000"})
    sentence = str(raised.value)
    assert sentence.startswith(f"{name} = ")
    assert said in sentence
    assert "MLflow at 'https://mlflow.corp:5000'" in sentence
    assert f"unset {name}, or add 'mlflow.corp' to no_proxy" in sentence
    assert "secret" not in sentence


def test_a_socks_proxy_is_kept_where_its_packages_are_there(monkeypatch):
    monkeypatch.setattr("flows.runner.proxies.find_spec", lambda module: object())
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy:1080")
    settle_proxies({"MLflow": "https://mlflow.corp:5000"})
    assert os.environ["ALL_PROXY"] == "socks5://proxy:1080"


def test_an_excepted_server_needs_no_proxy(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks4://proxy:1080")
    monkeypatch.setenv("no_proxy", "corp")
    settle_proxies({"MLflow": "https://mlflow.corp:5000"})
    assert "ALL_PROXY" not in os.environ, "httpx would fail for it"


def test_a_run_says_it_before_anything_starts_and_the_doctor_too(tmp_path, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks4://proxy:1080")
    out = f"out={tmp_path / 'out'}"
    run = load_run("tiny", [out, "tracking_uri=http://mlflow.corp:5000"])
    with pytest.raises(UserError, match="^ALL_PROXY = 'socks4://proxy:1080' cannot be used to"):
        work(run)
    assert not run.out.exists()
    findings = {finding.what: finding for finding in examine(run)}
    assert findings["servers"].verdict == "bad"


def test_a_run_that_fetches_a_model_talks_to_the_hub(stable_diffusion, x4_upscaler):
    models = {"image_model": stable_diffusion, "image_upscaler": "hub:stabilityai/x4"}
    given = [f"pretrained.{name}={source}" for name, source in models.items()]
    run = load_run("text_to_video", given)
    assert servers_of(run, table_of(run))["the hub"] == "https://huggingface.co"
    run = load_run("text_to_video", [given[0], f"pretrained.image_upscaler={x4_upscaler}"])
    assert set(servers_of(run, table_of(run))) == {"MLflow", "Prefect"}


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://a:4200/api", "http://a:4200/api"),
        ("http://u:p@a:4200/api", "http://***@a:4200/api"),
        ("http://u:p@ss@a", "http://***@a"),
        ("http://u:p/w@a", "http://***@a"),
        ("u:p@a", "***@a"),
    ],
)
def test_an_address_is_shown_without_its_login(address, shown):
    assert without_login(address) == shown
