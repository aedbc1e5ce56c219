"""Where a cascade's runs are kept in MLflow, also when somebody moved or deleted that."""

from pathlib import Path
from typing import Any

from flows.config.addresses import path_of
from videoldm_core.errors import UserError


def experiment_id(client: Any, name: str, *, folder: Path | None, is_own: bool) -> str:
    """MLflow's id of the experiment called `name`; made where there is none to go on with.

    MLflow keeps the place of artifacts as an absolute path and cannot change it. An experiment
    whose artifacts went to a folder that was moved is therefore set aside under another name.

    Args:
        folder: where artifacts of a new one go; None: where the server puts them.
        is_own: whether the database belongs to the run's folder, and is moved and copied with it.

    Raises:
        UserError: it was deleted.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        _refuse_deleted(found)
        if folder is None or _is_usable(found.artifact_location, folder, is_own=is_own):
            return found.experiment_id
        client.rename_experiment(found.experiment_id, f"{name} until moved, {found.experiment_id}")
    if folder is None:
        return client.create_experiment(name)
    folder.mkdir(mode=0o700, exist_ok=True)  # that it is there tells it from one that was moved
    return client.create_experiment(name, artifact_location=folder.absolute().as_uri())


def has_run(client: Any, run_id: str, name: str) -> bool:
    """Whether the server still has a run.

    Raises:
        UserError: it was deleted, and could be restored.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    _refuse_deleted(client.get_experiment(run.info.experiment_id))
    if run.info.lifecycle_stage == "deleted":
        raise UserError(
            f"its run {name!r} was deleted there; restore it with MLFLOW_TRACKING_URI set to that "
            f"address (mlflow runs restore --run-id {run_id}), or give the run another name=NAME"
        )
    return True


def _refuse_deleted(experiment: Any) -> None:
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"its experiment {experiment.name!r} was deleted there; restore it with "
            "MLFLOW_TRACKING_URI set to that address (mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}), or give the run another name=NAME"
        )


def _is_usable(location: str, folder: Path, *, is_own: bool) -> bool:
    """Whether artifacts may go on going to an experiment's location."""
    path = path_of(location)
    if path is None or path == folder:
        return True
    if not path.is_dir():
        return False
    # A copy of a run's folder writes into its own; runs that share a database share the first's.
    return not is_own or (folder.is_dir() and path.samefile(folder))
