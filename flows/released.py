"""A registered release as an `mlflow.pyfunc` model: prompts in, mp4 files out.

MLflow calls `_load_pyfunc` with the data of the release's version. That holds pins, not weights:
each pinned version is looked up in the registry, and laid out beside the others as in the run's
folder, so that what one stage inherits from another is found. Weights that are files of this
machine are not copied.
"""

import numbers
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from flows.config.addresses import path_of
from flows.config.request_limits import RequestLimits
from flows.registry.versions import RELEASE, REQUEST, TEXT_TOWER, Defaults, Pin, PinnedRelease
from flows.serving.scratch import ScratchFolder
from flows.serving.turns import Refused, Turns
from videoldm_core.cascade.annotations import Word
from videoldm_core.errors import UserError
from videoldm_core.records import Record, load_record, parse_record, shown
from videoldm_core.system.files import sha256_of_file, sha256_of_folder

if TYPE_CHECKING:
    import pandas

    from videoldm_core.sampling.request import Request


LARGEST_SEED = 2**53 - 1  # a data frame with an empty cell holds its whole numbers as floats


def _whole_number(value: object) -> object:
    """A whole number, also where a data frame made a float of it; no truth value and no text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError("expected a whole number")
    return int(value)


Whole = Annotated[int, BeforeValidator(_whole_number)]


class Row(Record):
    """One row of the model's input; what is left out or missing is as the release samples."""

    prompt: str
    seed: Annotated[Whole, Field(ge=-LARGEST_SEED, le=LARGEST_SEED)] | None = None
    # Before the interpolation passes.
    key_frames: Annotated[Whole, Field(ge=2)] | None = None
    passes: Annotated[Whole, Field(ge=0, le=2)] | None = None  # of the interpolator
    # Name -> value, in place of all the release's.
    labels: Annotated[dict[Word, Word], Field(max_length=100)] | None = None


class Released:
    """A loaded release; MLflow hands its `predict` on."""

    def __init__(self, data: Path) -> None:
        from videoldm_core.generate import load_models

        release = load_record(PinnedRelease, data / RELEASE, what="release")
        self._data = data
        self._defaults = _defaults(release, data)
        self._limits = self._defaults.limits
        self._scratch = ScratchFolder("releases")
        self._stages = lay_out(release, self._scratch.path)
        self._models = load_models(self._request(Row(prompt=""), "no row", Path("none.mp4")))
        self._turns = Turns(self._limits)

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
            Refused: a column is unknown, a value is of the wrong type, the models cannot do what is
                asked, it is more than the release's limits, too many requests wait, it took too
                long, or the server ends.
        """
        import pandas

        try:
            if params:
                raise UserError(
                    f"params = {shown(params)}, but a release takes none; use columns instead."
                )
            rows = _rows(model_input, self._limits)
            with self._turns.turn() as keep_going:
                return pandas.DataFrame({"video": self._videos(rows, keep_going)})
        except Refused:
            raise
        except UserError as error:
            raise Refused(str(error)) from error

    def _videos(self, rows: list[Row], keep_going: Callable[[], None]) -> list[bytes]:
        from videoldm_core.generate import make

        with tempfile.TemporaryDirectory(prefix="videos-", dir=self._scratch.path) as folder:
            requests = [
                self._request(row, f"row {number}", Path(folder) / f"{number}.mp4")
                for number, row in enumerate(rows)
            ]
            self._check_lengths(requests)
            videos = []
            for request in requests:
                make(request, self._models, keep_going=keep_going)
                videos.append(request.out.read_bytes())
                request.out.unlink()
        return videos

    def _check_lengths(self, requests: "list[Request]") -> None:
        """Refuses what the models cannot do, and more frames than the release allows."""
        from videoldm_core.cascade.lengths import frame_count
        from videoldm_core.sampling.request import check

        release, total = self._models.release, 0
        roles = {role: published.stage for role, published in release.stages.items()}
        for number, request in enumerate(requests):
            check(request, release)
            frames = frame_count(roles, key_frames=request.key_frames, passes=request.passes)
            total += frames
            _check_limit(f"row {number}: frames", frames, self._limits.frames)
        _check_limit("frames of all rows", total, self._limits.total_frames)

    def _request(self, row: Row, where: str, out: Path) -> "Request":
        from videoldm_core.sampling.request import Request

        values = self._defaults.model_dump(exclude={"limits"}) | row.model_dump(exclude_none=True)
        text_tower = self._data / TEXT_TOWER
        places = {"stages": self._stages, "text_tower": text_tower, "out": out}
        return parse_record(Request, values | places, where=where)


def lay_out(release: PinnedRelease, folder: Path) -> dict[str, Path]:
    """Puts the pinned versions of all stages side by side in `folder`; folders by stage.

    Reads every byte of the weights once per stage that uses them.

    Raises:
        UserError: a version is not in the registry, or is not what the release pins.
    """
    from videoldm_core.jobs.published import FILE, part_paths, published_digest

    stages = {}
    for name, pin in release.stages.items():
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
        _check_parts(stage, stages)
        part_paths(stage, verify=True)
    return stages


def _check_parts(stage: Path, stages: dict[str, Path]) -> None:
    """Refuses a stage.json whose weights are files of this machine that no pinned stage has."""
    from videoldm_core.jobs.published import FILE, read_published

    published = read_published(stage)
    assert published is not None, "its digest was compared"
    for name, part in published.parts.items():
        place = Path(os.path.normpath(stage / part.path))
        if not any(place.is_relative_to(pinned) for pinned in stages.values()):
            raise UserError(
                f"The {FILE} of {stage.name!r} names {part.path!r} as its {name!r}, which lies in "
                "no stage of the release; register the release again."
            )


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
        folder = path_of(uri)
        if folder is None:
            folder = Path(download_artifacts(artifact_uri=uri, dst_path=str(downloads)))
        return list(folder.iterdir())
    except (MlflowException, OSError) as error:
        raise UserError(
            f"Cannot get version {pin.version} of {pin.model!r}, which the release pins "
            f"({' '.join(str(error).split())[:300]}); set MLflow's tracking URI to where the "
            "release is registered."
        ) from error


def _rows(model_input: Any, limits: RequestLimits) -> list[Row]:
    """The rows of a data frame or a list, as records.

    Raises:
        UserError: see `Released.predict`.
    """
    import pandas

    if not isinstance(model_input, pandas.DataFrame | list):
        raise UserError(
            f"The input is {type(model_input).__name__}; expected a data frame or a list of rows "
            "like {'prompt': 'a red car'}."
        )
    _check_limit("rows", len(model_input), limits.rows)
    if isinstance(model_input, pandas.DataFrame):
        with_none = model_input.astype(object).where(model_input.notna(), None)
        model_input = with_none.to_dict("records")
    rows = [parse_record(Row, row, where=f"row {n}") for n, row in enumerate(model_input)]
    for number, row in enumerate(rows):
        _check_limit(f"row {number}: characters of prompt", len(row.prompt), limits.prompt)
        _check_limit(f"row {number}: key_frames", row.key_frames or 0, limits.key_frames)
    return rows


def _check_limit(what: str, value: int, most: int) -> None:
    if value > most:
        raise UserError(
            f"{what} = {shown(value)}, but this release takes at most {most}; ask for fewer."
        )
