"""The hub's client with one repository, whose snapshot is a folder of this machine."""

from pathlib import Path
from types import SimpleNamespace

import pytest

COMMIT, LATER = "a" * 40, "b" * 40


class FakeHub:
    """Answers in place of the hub; `commits` says where its branches are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, files: list[str]) -> None:
        self.folder, self.files = folder, files
        self.commits: dict[str | None, str] = {None: COMMIT}
        self.is_there = True
        self.asked: list[tuple[str, dict]] = []
        monkeypatch.setattr("huggingface_hub.model_info", self.info)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.download)

    def info(self, name: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        if not self.is_there:
            raise ConnectionError("no route to host")
        files = [SimpleNamespace(rfilename=file) for file in self.files]
        return SimpleNamespace(siblings=files, sha=self.commits.get(revision, revision))

    def download(self, name: str, **options: object) -> str:
        self.asked.append((name, options))
        return str(self.folder)


def files_below(folder: Path) -> list[str]:
    """Names as a repository has them."""
    return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
