"""A Prefect server for the tests that run flows, started once."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Flows run against a server and a database of their own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=1800):  # on a machine that others keep busy
        yield
