"""A run believes little of what a Prefect server answers: none of its results, and no success."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import prefect
import pytest
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultRecordMetadata, ResultStore
from prefect.serializers import PickleSerializer
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.runner.executor import make_due
from tests.flows.runner.test_executor import Workplace, new_crew
from videoldm_core.errors import UserError

Answers = Callable[[str], tuple[int, dict]]


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


class FakePrefect(ThreadingHTTPServer):
    """A Prefect server that answers a state change as `answers` says."""

    def __init__(self, answers: Answers) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.flow_run: dict = {"id": str(uuid4()), "name": "test", "flow_id": str(uuid4())}
        self.flow_run["state"] = {"type": "PENDING", "name": "Pending"}


class Handler(BaseHTTPRequestHandler):
    server: FakePrefect

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            self.say(200, prefect.__version__)
        elif "/flow_runs/" in self.path:
            self.say(200, self.server.flow_run)
        else:
            self.say(404, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_state = self.path.endswith("/set_state")
        self.say(*(self.server.answers(self.path) if is_state else (201, self.server.flow_run)))

    do_PATCH = do_POST

    def say(self, status: int, body: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[Callable[[Answers], str]]:
    """answering(answers): the address of a `FakePrefect`."""
    servers: list[FakePrefect] = []

    def start(answers: Answers) -> str:
        servers.append(FakePrefect(answers))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/api"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def stored_bomb(folder: Path, mark: Path) -> ResultRecordMetadata:
    """A pickled result, as Prefect keeps one, and what names it in a state."""
    storage = LocalFileSystem(basepath=str(folder))
    store = ResultStore(result_storage=storage, serializer=PickleSerializer())
    record = store.create_result_record(Bomb(mark), key=str(folder / "result"))
    (folder / "result").write_bytes(record.serialize())
    return record.metadata


def run_against(address: str, out: Path) -> Workplace:
    place = Workplace(out)
    with temporary_settings({PREFECT_API_URL: address}):
        make_due(new_crew(out), [place.step("a")])
    return place


def test_a_result_that_the_server_names_is_never_unpickled(tmp_path, answering):
    mark = tmp_path / "exploded"
    metadata = stored_bomb(tmp_path, mark).model_dump(mode="json")
    state = {"type": "COMPLETED", "name": "Completed", "data": metadata}
    rejected = {"state": state, "status": "REJECT", "details": {"reason": "done before"}}
    with pytest.raises(UserError, match=r"^Prefect did not let the run start \(it is 'Completed'"):
        run_against(answering(lambda path: (201, rejected)), tmp_path / "out")
    assert not mark.exists()


@pytest.mark.parametrize("status", [500, 404])
def test_a_server_that_loses_the_run_is_one_sentence_and_what_was_made_is_kept(
    status, tmp_path, answering
):
    asked: list[str] = []

    def answers(path: str) -> tuple[int, dict]:
        asked.append(path)
        if len(asked) > 1:
            return status, {}
        return 201, {"state": {"type": "RUNNING"}, "status": "ACCEPT", "details": {}}

    with pytest.raises(UserError, match="could not note how the run ended .*; what was made is"):
        run_against(answering(answers), tmp_path)
    assert len(asked) > 1
    assert (tmp_path / "a" / "stage.json").exists()
    assert (tmp_path / "steps" / "a.json").exists()
