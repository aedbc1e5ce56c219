"""Schedules on a Prefect server of its own process: a deployment gets its runs."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.settings import PREFECT_API_URL, temporary_settings

T = TypeVar("T")
PATIENCE_S = 240.0  # of a busy machine; a server that does schedule takes seconds


@flow(name="nightly")
def nightly(videos: str) -> None:
    """A flow to deploy; nobody runs it."""


def eventually(ask: Callable[[], T], alive: subprocess.Popen) -> T:
    """The first answer that is not empty."""
    deadline = time.monotonic() + PATIENCE_S
    while not (answer := ask()):
        assert alive.poll() is None, "the server has ended"
        assert time.monotonic() < deadline, "this did not happen in time"
        time.sleep(0.2)
    return answer


def is_listening(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """`prefect server start` as a person starts it, with everything of it in a folder; in use."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = {name: text for name, text in os.environ.items() if "PREFECT" not in name}
    environment |= {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",  # 60 by default
    }
    command = [sys.executable, "-P", "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    eventually(lambda: is_listening(port), server)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
        yield server
    server.terminate()
    server.wait()


def runs_of(deployment, client: SyncPrefectClient) -> list:
    of_it = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    return client.read_flow_runs(deployment_filter=of_it)


@pytest.mark.timeout(900)
def test_a_deployment_with_a_cron_schedule_gets_its_runs(server):
    deployment = nightly.to_deployment(
        "every-night", cron="30 2 * * *", parameters={"videos": "drives"}
    ).apply()
    with get_client(sync_client=True) as client:
        runs = eventually(lambda: runs_of(deployment, client), server)
    assert {(run.state_name, run.auto_scheduled) for run in runs} == {("Scheduled", True)}
    times = sorted(run.expected_start_time for run in runs if run.expected_start_time)
    assert [(due.hour, due.minute) for due in times] == [(2, 30)] * len(runs)
    days = [due.toordinal() for due in times]
    assert days == list(range(days[0], days[0] + len(days))), "one for every day"
    assert times[0] > datetime.now(times[0].tzinfo)
    assert all(run.parameters == {"videos": "drives"} for run in runs)
