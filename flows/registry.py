"""Trained stages as versions of registered models, and releases that pin one version of each.

Versions are told apart by the digest of the stage's `stage.json`, so registering again changes
nothing. What a version points at is kept beside MLflow's artifacts and never rewritten. Uses
aliases and tags, not MLflow's deprecated stages. A release is an MLflow model: flows/released.py
loads it.
"""

import hashlib
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pydantic import NonNegativeInt

from flows.request_limits import RequestLimits
from videoldm_core.errors import UserError
from videoldm_core.files import sha256_of_file
from videoldm_core.machine import Precision
from videoldm_core.records import Digest, PlainName, Record, load_record

CANDIDATE = "candidate"
DATA = Path("data/release")  # of a release's version: what flows/released.py is given
RELEASE, REQUEST, TEXT_TOWER = "release.json", "request.json", "text_tower"  # in there
MLMODEL = "MLmodel"
MODEL_FILES = (MLMODEL, "conda.yaml", "python_env.yaml", "requirements.txt")


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

    model: PlainName
    version: NonNegativeInt | None  # None while the tracking server has not answered
    digest: Digest  # of stage.json
    folder: Path


class Defaults(Record):
    """How a release samples what a request leaves open; values of videoldm_core's Request."""

    roles: dict[str, str | None]  # role -> stage
    key_frames: int
    passes: int  # of the interpolator
    size: tuple[int, int] | None  # height, width before upscaling, px; None: as trained
    labels: dict[str, str]
    seed: int
    precision: Precision
    sampling: dict[str, Any]  # every field, so that other defaults of the code change nothing
    limits: RequestLimits = RequestLimits()  # of what one request to it may ask for

    def content(self) -> str:
        """What request.json holds."""
        return self.model_dump_json(indent=2) + "\n"

    def digest(self) -> str:
        """Hex SHA-256 of request.json."""
        return hashlib.sha256(self.content().encode()).hexdigest()


class PinnedRelease(Record):
    """One version of every stage, made to be sampled together, and how."""

    name: PlainName
    version: NonNegativeInt | None = None
    stages: dict[PlainName, Pin]
    request: Digest  # of request.json: how it samples what a request leaves open
    text_tower: Digest  # of the folder

    def digest(self) -> str:
        """The same for the same versions of the same stages, sampled in the same way."""
        pins = "".join(
            f"{name}:{pin.version}:{pin.digest}\n" for name, pin in sorted(self.stages.items())
        )
        pins += f"request.json:{self.request}\ntext_tower:{self.text_tower}\n"
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
    files = {path: model.folder / path for path in model.files}
    source = _keep(client, model.run_id, target, files)
    return _create_version(
        client, name, source, run_id=model.run_id, tags={**model.tags, "digest": model.digest}
    )


def register_release(
    client: Any, release: PinnedRelease, *, run_id: str, defaults: Defaults, text_tower: Path
) -> PinnedRelease:
    """The release with its version, an MLflow model; made when the same one has none.

    Args:
        defaults: those whose digest the release has.
        text_tower: the folder whose digest the release has.
    """
    name = model_name(release.name, "release")
    version = find_version(client, name, release.digest())
    if version is None:
        with tempfile.TemporaryDirectory() as folder:
            files = _written(release, defaults, Path(folder))
            for path in sorted(path for path in text_tower.rglob("*") if path.is_file()):
                files[DATA / TEXT_TOWER / path.relative_to(text_tower)] = path
            source = _keep(client, run_id, f"release-{release.digest()[:12]}", files)
        pins = {
            f"pin.{stage}": f"{pin.model}/{pin.version}" for stage, pin in release.stages.items()
        }
        version = _create_version(
            client, name, source, run_id=run_id, tags={**pins, "digest": release.digest()}
        )
    return release.model_copy(update={"version": version})


def registered_release(client: Any, run_name: str, version: int | str = CANDIDATE) -> PinnedRelease:
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
    uri = f"{found.source}/{DATA}/{RELEASE}"
    path = download_artifacts(uri, tracking_uri=client.tracking_uri)
    release = load_record(PinnedRelease, Path(path), what="release")
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


def _written(release: PinnedRelease, defaults: Defaults, folder: Path) -> dict[Path, Path]:
    """Writes a release as an MLflow model, without its text tower; files by their place in it.

    Nothing is pickled: the model is named by the module that loads it.
    """
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    data, model = folder / DATA.name, folder / "model"
    data.mkdir()
    (data / RELEASE).write_text(release.model_dump_json(indent=2))
    (data / REQUEST).write_text(defaults.content())
    # No inputs: of named ones MLflow leaves out, with no more than a warning, the columns that it
    # does not know. The loaded model refuses them.
    mlflow.pyfunc.save_model(
        model,
        loader_module="flows.released",
        data_path=data,
        signature=ModelSignature(outputs=Schema([ColSpec("binary", "video")])),
        pip_requirements=[f"videoldm=={metadata.version('videoldm')}"],
    )
    described = Model.load(str(model))
    described.model_size_bytes = None  # counted without the text tower, which is not copied
    described.save(str(model / MLMODEL))
    places = (*map(Path, MODEL_FILES), DATA / RELEASE, DATA / REQUEST)
    return {place: model / place for place in places}


def _keep(client: Any, run_id: str, target: str, files: dict[Path, Path]) -> str:
    """Puts files, by place, among the run's artifacts, below `target`, and answers their URI."""
    root = client.get_run(run_id).info.artifact_uri
    if urlparse(root).scheme == "file":
        kept = Path(unquote(urlparse(root).path)) / target
        for place, path in files.items():
            _link_or_copy(path, kept / place)
    else:
        for place, path in files.items():
            assert place.name == path.name, f"{path} cannot be uploaded as {place}"
            inside = (Path(target) / place).parent.as_posix()
            client.log_artifact(run_id, str(path), artifact_path=inside)
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
