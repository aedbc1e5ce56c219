"""Keeps Prefect and MLflow from chattering and from calling home.

Environment variables, so they must be set before the packages are imported.
"""

import logging
import os
import warnings
from pathlib import Path

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # Prefect's pages still get them
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the tracker retries itself, and nobody waits for it
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}


def silence_prefect(out: Path) -> None:
    """Prefect's database goes below the run's folder, unless the user has a place for it."""
    _set_defaults()
    os.environ.setdefault("PREFECT_HOME", str(out / "prefect"))


def silence_mlflow() -> None:
    """MLflow's log lines and its dependencies' warnings stay off the terminal.

    Its errors too, which it logs with a traceback before it raises them: the tracker catches them
    and says what is not delivered.
    """
    _set_defaults()
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    warnings.filterwarnings("ignore", module=r"mlflow|alembic|pydantic")


def _set_defaults() -> None:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
