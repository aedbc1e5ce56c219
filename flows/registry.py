"""Trained stages as versions of registered models, and releases that pin one version of each.

Versions are told apart by the digest of the stage's `stage.json`, so registering again changes
nothing. What a version points at is kept beside MLflow's artifacts and never rewritten. Uses
aliases and tags, not MLflow's deprecated stages.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from videoldm_core.errors import UserError
from videoldm_core.files import sha256_of_file
from videoldm_core.records import Record

CANDIDATE = "candidate"


class StageModel(Record):
    """A published stage, as it is registered."""

    stage: str
    folder: Path  # where it was published
    files: tuple[Path, ...]  # what a version keeps of it, relative to the folder
    digest: str  # of stage.json
    run_id: str  # its MLflow run
    tags: dict[str, str] = {}  # fingerprint, parents' versions, data identity, git commit, worth


class Pin(Record):
    """One stage of a release."""

    model: str
    version: int | None  # None while the tracking server has not answered
    digest: str
    folder: Path


class Release(Record):
    """One version of every stage, made to be sampled together."""

    name: str
    version: int | None = None
    stages: dict[str, Pin]

    def digest(self) -> str:
        """The same for the same versions of the same stages."""
        pins = "".join(
            f"{name}:{pin.version}:{pin.digest}\n" for name, pin in sorted(self.stages.items())
        )
        return hashlib.sha256(pins.encode()).hexdigest()


def model_name(run_name: str, stage: str) -> str:
    """The registered model of one stage."""
    return f"{run_name}-{stage}"


def register_stage(client: Any, run_name: str, model: StageModel) -> int:
    """The version of a published stage; made when there is none with its digest."""
    name = model_name(run_name, model.stage)
    known = find_version(client, name, model.digest)
    if known is not None:
        return known
    target = f"model-{model.digest[:12]}"
    source = _keep(client, model.run_id, target, folder=model.folder, files=model.files)
    return _create_version(
        client, name, source, run_id=model.run_id, tags={**model.tags, "digest": model.digest}
    )


def register_release(client: Any, release: Release, *, run_id: str) -> Release:
    """The release with its version; made when the same pins have none."""
    name = model_name(release.name, "release")
    version = find_version(client, name, release.digest())
    if version is None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "release.json").write_text(release.model_dump_json(indent=2))
            target = f"release-{release.digest()[:12]}"
            source = _keep(
                client, run_id, target, folder=Path(folder), files=(Path("release.json"),)
            )
        pins = {
            f"pin.{stage}": f"{pin.model}/{pin.version}" for stage, pin in release.stages.items()
        }
        version = _create_version(
            client, name, source, run_id=run_id, tags={**pins, "digest": release.digest()}
        )
    return release.model_copy(update={"version": version})


def read_release(client: Any, run_name: str, version: int | str = CANDIDATE) -> Release:
    """A registered release by its version number or alias.

    Raises:
        UserError: there is no such release.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    name = model_name(run_name, "release")
    try:
        by_alias = isinstance(version, str)
        found = (client.get_model_version_by_alias if by_alias else client.get_model_version)(
            name, version
        )
    except MlflowException as error:
        raise UserError(
            f"There is no release {version!r} of {name!r} in the registry; "
            "make one with videoldm run."
        ) from error
    path = download_artifacts(f"{found.source}/release.json", tracking_uri=client.tracking_uri)
    release = Release.model_validate_json(Path(path).read_text())
    return release.model_copy(update={"version": int(found.version)})


def find_version(client: Any, name: str, digest: str) -> int | None:
    """The version of `name` whose content has `digest`."""
    versions = client.search_model_versions(f"name = '{name}'")
    return next((int(v.version) for v in versions if v.tags.get("digest") == digest), None)


def _create_version(
    client: Any, name: str, source: str, *, run_id: str, tags: dict[str, str]
) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    texts = {key: str(value)[:5000] for key, value in tags.items()}
    version = int(
        client.create_model_version(name, source=source, run_id=run_id, tags=texts).version
    )
    client.set_registered_model_alias(name, CANDIDATE, version)
    return version


def _keep(client: Any, run_id: str, target: str, *, folder: Path, files: tuple[Path, ...]) -> str:
    """Puts files of `folder` among the run's artifacts, below `target`, and answers their URI."""
    root = client.get_run(run_id).info.artifact_uri
    if urlparse(root).scheme == "file":
        kept = Path(unquote(urlparse(root).path)) / target
        for path in files:
            _link_or_copy(folder / path, kept / path)
    else:
        for path in files:
            inside = (Path(target) / path).parent.as_posix()
            client.log_artifact(run_id, str(folder / path), artifact_path=inside)
    return f"{root}/{target}"


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same bytes where possible: weights are large, and never rewritten."""
    if target.exists() and sha256_of_file(target) == sha256_of_file(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
