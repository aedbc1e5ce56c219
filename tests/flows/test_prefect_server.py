"""The embedded Prefect server outlives an interrupt, but not the command it serves."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from flows.prefect_server import use_prefect

ROOT = Path(__file__).parents[2]
HOLDER = """
import signal, sys, time
from pathlib import Path
from flows.prefect_server import use_prefect
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
print(use_prefect(Path(sys.argv[1])), flush=True)
while True:
    time.sleep(0.1)
"""


def answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api/health", timeout=5):
        return True
    return False


def page(address: str) -> str:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.read().decode()


def test_the_server_answers_after_an_interrupt_and_ends_with_a_killed_command(tmp_path):
    environment = {name: text for name, text in os.environ.items() if "PREFECT" not in name}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert holder.stdout
    address = holder.stdout.readline().strip()
    assert answers(address)
    assert "<title>Prefect" in page(address), "the address is printed for people to open"
    settings = json.loads(page(f"{address}/ui-settings"))
    assert settings["api_url"] == f"{address}/api", "the pages ask this server, not port 4200"
    os.killpg(holder.pid, signal.SIGINT)  # what a terminal does
    assert holder.stdout.readline() == "interrupted\n"
    assert answers(address)
    holder.kill()
    holder.communicate()
    deadline = time.monotonic() + 20
    while answers(address):
        assert time.monotonic() < deadline, "the server is still there"
        time.sleep(0.1)
    assert (tmp_path / "prefect" / "prefect.db").exists()


def test_a_named_server_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://one:4200/api")
    assert use_prefect(tmp_path) is None
    assert not (tmp_path / "prefect").exists()
