"""A registered release as an `mlflow.pyfunc` model: prompts in, mp4 files out.

MLflow calls `_load_pyfunc` with the data of the release's version. That holds pins, not weights:
each pinned version is looked up in the registry, and laid out beside the others as in the run's
folder, so that what one stage inherits from another is found. Weights that are files of this
machine are not copied.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from flows.registry import RELEASE, REQUEST, TEXT_TOWER, Defaults, Pin, PinnedRelease
from videoldm_core.errors import UserError
from videoldm_core.files import sha256_of_file, sha256_of_folder
from videoldm_core.records import Record, load_record, parse_record

if TYPE_CHECKING:
    import pandas

    from videoldm_core.sampling.request import Request


class Row(Record):
    """One row of the model's input; what is left out or missing is as the release samples."""

    prompt: str
    seed: int | None = None
    key_frames: int | None = None  # before the interpolation passes
    passes: int | None = None  # of the interpolator
    labels: dict[str, str] | None = None  # name -> value, in place of all the release's


class Released:
    """A loaded release; MLflow hands its `predict` on."""

    def __init__(self, data: Path) -> None:
        from videoldm_core.generate import load_models

        release = load_record(PinnedRelease, data / RELEASE, what="release")
        self._data = data
        self._defaults = _defaults(release, data)
        self._folder = tempfile.TemporaryDirectory(prefix="videoldm-release-")
        self._stages = lay_out(release, Path(self._folder.name))
        self._models = load_models(self._request(Row(prompt=""), "no row", Path("none.mp4")))

    def predict(
        self, model_input: "pandas.DataFrame | list[dict[str, Any]]", params: Any = None
    ) -> "pandas.DataFrame":
        """One video per row, made as `videoldm_core.generate` makes it.

        Args:
            model_input: rows with a `prompt`, and where they differ from what the release does by
                itself, with the other fields of `Row`. Empty cells are left out.
            params: none are known; columns say everything.

        Returns:
            The column `video`: the bytes of an mp4 file.

        Raises:
            UserError: a column is unknown, a value is of the wrong type, or the models cannot do
                what is asked.
        """
        import pandas

        from videoldm_core.generate import make

        if params:
            raise UserError(f"params = {params!r}, but a release takes none; use columns instead.")
        with tempfile.TemporaryDirectory(prefix="videoldm-video-") as folder:
            requests = [
                self._request(row, f"row {number}", Path(folder) / f"{number}.mp4")
                for number, row in enumerate(_rows(model_input))
            ]
            videos = []
            for request in requests:
                make(request, self._models)
                videos.append(request.out.read_bytes())
        return pandas.DataFrame({"video": videos})

    def _request(self, row: Row, where: str, out: Path) -> "Request":
        from videoldm_core.sampling.request import Request

        values = self._defaults.model_dump() | row.model_dump(exclude_none=True)
        text_tower = self._data / TEXT_TOWER
        places = {"stages": self._stages, "text_tower": text_tower, "out": out}
        return parse_record(Request, values | places, where=where)


def lay_out(release: PinnedRelease, folder: Path) -> dict[str, Path]:
    """Puts the pinned versions of all stages side by side in `folder`; folders by stage.

    Reads every byte of the weights once per stage that uses them.

    Raises:
        UserError: a version is not in the registry, or is not what the release pins.
    """
    from videoldm_core.training.published import FILE, part_paths, published_digest

    stages = {}
    for name, pin in release.stages.items():
        if name in ("", ".", "..") or "/" in name:
            raise UserError(f"The release pins the stage {name!r}, which is no name of a folder.")
        stages[name] = folder / "stages" / name
        stages[name].mkdir(parents=True)
        # Not of the version's own folder: `..` in stage.json is to lead to the other stages.
        for path in _files(pin, folder / "versions" / name):
            (stages[name] / path.name).symlink_to(path)
        is_published = (stages[name] / FILE).is_file()
        if not is_published or published_digest(stages[name]) != pin.digest:
            raise UserError(
                f"Version {pin.version} of {pin.model!r} is not what the release pins: its {FILE} "
                "was changed or is missing; train the stage again."
            )
    for stage in stages.values():
        part_paths(stage, verify=True)
    return stages


def _load_pyfunc(path: str) -> Released:
    """What MLflow calls."""
    return Released(Path(path))


def _defaults(release: PinnedRelease, data: Path) -> Defaults:
    """What request.json says, when it and the text tower beside it are what the release pins."""
    defaults = load_record(Defaults, data / REQUEST, what="release's request file")
    found = {
        REQUEST: sha256_of_file(data / REQUEST),
        TEXT_TOWER: sha256_of_folder(data / TEXT_TOWER),
    }
    for name, pinned in {REQUEST: release.request, TEXT_TOWER: release.text_tower}.items():
        if found[name] != pinned:
            raise UserError(
                f"{str(data / name)!r} is not what the release pins: it was changed or is missing; "
                "register the release again."
            )
    return defaults


def _files(pin: Pin, downloads: Path) -> list[Path]:
    """Files and folders of a pinned version: the artifact store's own, or downloaded ones.

    Raises:
        UserError: the registry does not have it, or its files are not there.
    """
    import mlflow
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        uri = mlflow.MlflowClient().get_model_version_download_uri(pin.model, str(pin.version))
        if urlparse(uri).scheme == "file":
            folder = Path(unquote(urlparse(uri).path))
        else:
            folder = Path(download_artifacts(artifact_uri=uri, dst_path=str(downloads)))
        return list(folder.iterdir())
    except (MlflowException, OSError) as error:
        raise UserError(
            f"Cannot get version {pin.version} of {pin.model!r}, which the release pins "
            f"({' '.join(str(error).split())[:300]}); set MLflow's tracking URI to where the "
            "release is registered."
        ) from error


def _rows(model_input: Any) -> list[Row]:
    """The rows of a data frame or a list, as records.

    Raises:
        UserError: see `Released.predict`.
    """
    import pandas

    if isinstance(model_input, pandas.DataFrame):
        with_none = model_input.astype(object).where(model_input.notna(), None)
        model_input = with_none.to_dict("records")
    if not isinstance(model_input, list):
        raise UserError(
            f"The input is {type(model_input).__name__}; expected a data frame or a list of rows "
            "like {'prompt': 'a red car'}."
        )
    return [parse_record(Row, row, where=f"row {n}") for n, row in enumerate(model_input)]
