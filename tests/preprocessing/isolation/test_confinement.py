"""What a child process can reach: no torch, no secret, no file, no network."""

import os
import socket
import sys

import pytest

from preprocessing.isolation import workers as isolation
from preprocessing.isolation.workers import Call, IsolatedError, Workers
from tests.preprocessing.isolation.running import GENEROUS, run_isolated


def imported_by_decoding(progress):
    import preprocessing.admission.admit  # noqa: F401

    return sorted(name for name in ("torch", "decord", "prefect") if name in sys.modules)


def environment(progress):
    return dict(os.environ)


def connect(progress, port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30):
            return "reached"
    except OSError as error:
        return type(error).__name__


def write(progress, path):
    try:
        with open(path, "wb") as file:
            file.write(b"mine")
            file.flush()
    except OSError as error:
        return error.strerror
    return "written"


def test_children_that_decode_import_no_torch():
    assert run_isolated(imported_by_decoding) == []


def test_a_child_sees_no_key_token_or_password(monkeypatch):
    secrets = ("AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD")
    for name in (*secrets, "LC_TIME", "TMPDIR"):
        monkeypatch.setenv(name, f"/{name}")
    seen = run_isolated(environment)
    assert {"LC_TIME": "/LC_TIME", "TMPDIR": "/TMPDIR"}.items() <= seen.items()
    allowed = ("PATH", "LANG", "LANGUAGE", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH")
    allowed += ("PYTHONSAFEPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert {name for name in seen if not name.startswith("LC_")} <= set(allowed)


def test_a_child_writes_no_file(tmp_path):
    assert run_isolated(write, str(tmp_path / "file")) == "File too large"
    assert not (tmp_path / "file").read_bytes()


def test_a_child_reaches_no_network_or_the_pool_says_why():
    with socket.create_server(("127.0.0.1", 0)) as server, Workers(1) as workers:
        (outcome,) = workers.run(connect, [Call((server.getsockname()[1],), GENEROUS)])
        assert (outcome.value == "reached") == bool(workers.network)


def test_it_is_known_before_any_call_what_children_reach(monkeypatch):
    with Workers(1) as workers:
        list(workers.run(environment, [Call((), GENEROUS)]))
        assert isolation.network_in_reach() == workers.network
    monkeypatch.setattr(isolation, "_CHILD", "raise SystemExit(3)")
    with pytest.raises(IsolatedError, match="exit code 3"):
        isolation.network_in_reach()
