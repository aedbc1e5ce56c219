"""What registered versions point at: files kept among a run's artifacts, and never rewritten."""

import os
import shutil
from pathlib import Path
from typing import Any

from flows.config.addresses import path_of
from videoldm_core.system.files import make_folder, publish_file, sha256_of_file, sync


class Kept:
    """The artifacts of one MLflow run."""

    def __init__(self, client: Any, run_id: str) -> None:
        run = client.get_run(run_id).info
        self._client, self._run_id, self._root = client, run_id, run.artifact_uri
        experiment = client.get_experiment(run.experiment_id)
        self._all = path_of(experiment.artifact_location)  # of the runs beside it, too

    def put(self, target: str, files: dict[Path, Path]) -> str:
        """Keeps files, by their places below `target`; its URI."""
        root = path_of(self._root)
        if root is not None:
            for place, path in files.items():
                _link_or_copy(path, root / target / place)
        else:
            for place, path in files.items():
                assert place.name == path.name, f"{path} cannot be uploaded as {place}"
                inside = (Path(target) / place).parent.as_posix()
                self._client.log_artifact(self._run_id, str(path), artifact_path=inside)
        return f"{self._root}/{target}"

    def has(self, source: str, files: dict[Path, Path]) -> bool:
        """Whether `source` is a place of this experiment's that holds the bytes of `files`.

        Of a store on another machine this is believed: nobody moves that with a folder.
        """
        folder = path_of(source)
        if folder is None or self._all is None:
            return folder is None and self._all is None
        return folder.is_relative_to(self._all) and all(
            _are_same(folder / place, path) for place, path in files.items()
        )


def _are_same(one: Path, other: Path) -> bool:
    if not one.is_file():
        return False
    if one.samefile(other):
        return True
    same_size = one.stat().st_size == other.stat().st_size
    return same_size and sha256_of_file(one) == sha256_of_file(other)


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same bytes where possible: weights are large, and never rewritten."""
    if _are_same(target, source):
        return
    make_folder(target.parent)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
        sync(target.parent)
    except OSError:
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        shutil.copyfile(source, part)
        publish_file(part, target)
