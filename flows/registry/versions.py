"""Trained stages as versions of registered models, and releases that pin one version of each.

Versions are told apart by the digest of the stage's `stage.json`, so registering again changes
nothing. What a version points at is kept beside MLflow's artifacts and never rewritten. A version
says where that is for good: one whose files are not there any more (somebody moved or deleted them)
counts for nothing, and is registered anew. Uses aliases and tags, not MLflow's deprecated stages. A
release is an MLflow model: flows/released.py loads it.
"""

import hashlib
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt

from flows.config.addresses import path_of
from flows.config.request_limits import RequestLimits
from flows.registry.kept import Kept
from videoldm_core.errors import UserError
from videoldm_core.records import Digest, PlainName, Record, load_record
from videoldm_core.system.files import files_below
from videoldm_core.system.machine import Precision

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
    name, kept = model_name(run_name, model.stage), Kept(client, model.run_id)
    files = {path: model.folder / path for path in model.files}
    known = _version_at(client, name, model.digest, lambda uri: kept.has(uri, files))
    if known is not None:
        return known
    source = kept.put(f"model-{model.digest[:12]}", files)
    tags = {**model.tags, "digest": model.digest}
    return _version_of(client, name, source, run_id=model.run_id, tags=tags)


def register_release(
    client: Any, release: PinnedRelease, *, run_id: str, defaults: Defaults, text_tower: Path
) -> PinnedRelease:
    """The release with its version, an MLflow model; made when the same one has none.

    Args:
        defaults: those whose digest the release has.
        text_tower: the folder whose digest the release has.
    """
    name, kept = model_name(release.name, "release"), Kept(client, run_id)
    own = [path for path in sorted(text_tower.rglob("*")) if path.is_file()]
    tower = {DATA / TEXT_TOWER / path.relative_to(text_tower): path for path in own}
    with tempfile.TemporaryDirectory() as folder:
        files = _written(release, defaults, Path(folder)) | tower
        # The others hold times and versions: what they say of this release may be told otherwise.
        same = {place: path for place, path in files.items() if DATA in place.parents}
        version = _version_at(client, name, release.digest(), lambda uri: kept.has(uri, same))
        if version is None:
            source = kept.put(f"release-{release.digest()[:12]}", files)
            pins = {f"pin.{k}": f"{pin.model}/{pin.version}" for k, pin in release.stages.items()}
            tags = {**pins, "digest": release.digest()}
            version = _version_of(client, name, source, run_id=run_id, tags=tags)
    return release.model_copy(update={"version": version})


def files_of(client: Any, release: PinnedRelease) -> list[Path]:
    """The files on this machine that a registered release is loaded from."""
    of_release = (model_name(release.name, "release"), release.version)
    versions = [of_release, *((pin.model, pin.version) for pin in release.stages.values())]
    sources = (client.get_model_version(name, str(version)).source for name, version in versions)
    folders = [path for source in sources if (path := path_of(source))]
    return [path for folder in folders for path in files_below(folder)]


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
    """The newest version of `name` whose content has `digest`."""
    return _version_at(client, name, digest, lambda uri: True)


def _version_at(client: Any, name: str, digest: str, is_there: Callable[[str], bool]) -> int | None:
    """The newest version of `name` with `digest` whose source is right."""
    versions = client.search_model_versions(f"name = '{name}'")
    same = [found for found in versions if found.tags.get("digest") == digest]
    return max((int(found.version) for found in same if is_there(found.source)), default=None)


def _version_of(client: Any, name: str, source: str, *, run_id: str, tags: dict[str, str]) -> int:
    """The version whose files were just put (back) to `source`."""
    repaired = _version_at(client, name, tags["digest"], lambda uri: uri == source)
    return repaired or _create_version(client, name, source, run_id=run_id, tags=tags)


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
