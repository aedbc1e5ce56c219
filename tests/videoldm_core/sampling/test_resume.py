"""Interrupted sampling: the same request goes on and gives the same bytes; nothing is mixed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.videoldm_core.releases import publish, request_for
from videoldm_core.errors import UserError
from videoldm_core.generate import generate
from videoldm_core.jobs.published import part_paths, read_published
from videoldm_core.sampling.key_frames import KeyFrameCalls
from videoldm_core.sampling.resume import unfinished_folder
from videoldm_core.sampling.video_file import VideoFile

# 7 key frames of 5 per call, 25 frames: 4 segments of 8 frames, 4 of each portion shown.
LONG = {
    "key_frames": 7,
    "sampling": {
        "steps": 1,
        "interpolation_steps": 1,
        "upscale_steps": 1,
        "portion": 8,
        "segment": 8,
        "windows": 2,
        "sampler": "ddpm",
    },
}
FILES = ["v.gif", "v.mp4", "v.journal.jsonl"]

KILLED_AT_ITS_NTH_WRITE = """
import os, signal, sys
from videoldm_core.generate import main
from videoldm_core.sampling.video_file import VideoFile

write, left = VideoFile.write, int(sys.argv.pop())

def write_or_die(file, frames):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, frames)

VideoFile.write = write_or_die
sys.exit(main())
"""


def command(program: str, *arguments: str, limit: int | None = None) -> subprocess.CompletedProcess:
    def limited() -> None:
        import resource

        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    root = Path(__file__).resolve().parents[3]
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited,
    )


def segments(out: Path) -> list[str]:
    found = unfinished_folder(out).glob("*/*/segment-*.mp4")
    return sorted("/".join(path.parts[-2:]) for path in found)


@pytest.fixture(scope="module")
def uninterrupted(released, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    generate(request_for(released, folder / "v.mp4", **LONG))
    assert sorted(os.listdir(folder)) == sorted(FILES)
    return folder


def assert_same_videos(folder: Path, expected: Path) -> None:
    assert sorted(os.listdir(folder)) == sorted(FILES)
    for name in FILES[:-1]:
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_killed_command_goes_on_after_its_last_segment(released, uninterrupted, tmp_path: Path):
    """Killed by the kernel in the middle of its third segment."""
    request, path = request_for(released, tmp_path / "out" / "v.mp4", **LONG), tmp_path / "r.json"
    path.write_text(request.model_dump_json())
    ended = command(KILLED_AT_ITS_NTH_WRITE, str(path), "6")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert segments(request.out) == ["future-1/segment-00000.mp4", "future-1/segment-00001.mp4"]
    generate(request)
    assert_same_videos(tmp_path / "out", uninterrupted)


def break_at(monkeypatch, owner: type, name: str, call: int) -> None:
    """Lets the `call`-th call of a method fail."""
    kept, left = getattr(owner, name), [call]

    def fails(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return kept(*arguments, **options)

    monkeypatch.setattr(owner, name, fails)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(KeyFrameCalls, "_make", 2), (VideoFile, "write", 1), (VideoFile, "write", 4)],
)
def test_an_interrupted_call_goes_on_to_the_same_bytes(
    released, uninterrupted, tmp_path: Path, monkeypatch, owner, name, call
):
    request = request_for(released, tmp_path / "v.mp4", **LONG)
    with monkeypatch.context() as patch:
        break_at(patch, owner, name, call)
        with pytest.raises(KeyboardInterrupt):
            generate(request)
    assert not list(tmp_path.glob("*.mp4"))
    generate(request)
    assert_same_videos(tmp_path, uninterrupted)


def test_what_is_finished_is_not_made_again(released, tmp_path: Path, monkeypatch):
    request = request_for(released, tmp_path / "v.mp4", **LONG)
    with monkeypatch.context() as patch:
        break_at(patch, VideoFile, "write", 6)
        with pytest.raises(KeyboardInterrupt):
            generate(request)
    monkeypatch.setattr(KeyFrameCalls, "_clip", None)  # all key frames are there
    break_at(monkeypatch, VideoFile, "write", 3)
    with pytest.raises(KeyboardInterrupt):
        generate(request)
    assert segments(request.out) == [f"future-1/segment-{i:05}.mp4" for i in range(3)]


def root_of(released: dict[str, Path]) -> Path:
    return released["text_tower"].parent


def train_on(stage: Path) -> None:
    """Publishes other temporal layers in a stage's folder."""
    published = read_published(stage)
    assert published is not None
    parts = part_paths(stage)
    (weights,) = parts["temporal"].glob("*.safetensors")
    save_file({name: 0.5 * tensor for name, tensor in load_file(weights).items()}, weights)
    publish(stage, published.stage, parts)


@pytest.mark.parametrize("change", [{"seed": 1}, {"prompt": "a bus"}, {"passes": 0}, "stage"])
def test_what_another_request_began_is_not_mixed_in(
    released, uninterrupted, tmp_path: Path, monkeypatch, change
):
    root = shutil.copytree(root_of(released), tmp_path / "release")
    copies = {name: root / path.relative_to(root_of(released)) for name, path in released.items()}
    request = request_for(copies, tmp_path / "v.mp4", **LONG)
    with monkeypatch.context() as patch:
        break_at(patch, VideoFile, "write", 4)
        with pytest.raises(KeyboardInterrupt):
            generate(request)
    assert len(segments(request.out)) == 1
    if change == "stage":
        train_on(copies["predictor"])
        change = {}
    other = type(request).model_validate(request.model_dump(mode="json") | change)
    generate(other)
    fresh = other.model_copy(update={"out": tmp_path / "fresh" / "v.mp4"})
    generate(fresh)
    assert other.out.read_bytes() == fresh.out.read_bytes()
    assert fresh.out.read_bytes() != (uninterrupted / "v.mp4").read_bytes()
    assert not unfinished_folder(other.out).exists()


def test_another_request_for_the_same_name_takes_nothing_from_an_interrupted_one(
    released, uninterrupted, tmp_path: Path, monkeypatch
):
    request = request_for(released, tmp_path / "v.mp4", **LONG)
    other = request.model_copy(update={"prompt": "a bus"})
    for one in (request, other):
        with monkeypatch.context() as patch:
            break_at(patch, VideoFile, "write", 4)
            with pytest.raises(KeyboardInterrupt):
                generate(one)
    assert segments(request.out) == 2 * ["future-1/segment-00000.mp4"]
    monkeypatch.setattr(KeyFrameCalls, "_clip", None)  # all key frames are there
    generate(request)
    assert_same_videos(tmp_path, uninterrupted)


def test_where_the_video_goes_does_not_matter_to_what_it_is(
    released, uninterrupted, tmp_path: Path
):
    generate(request_for(released, tmp_path / "other" / "v.mp4", **LONG))
    assert_same_videos(tmp_path / "other", uninterrupted)


def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(
    released, uninterrupted, tmp_path: Path
):
    """The kernel refuses to let a file grow, as a full disk does."""
    request, path = request_for(released, tmp_path / "out" / "v.mp4", **LONG), tmp_path / "r.json"
    path.write_text(request.model_dump_json())
    program = "import sys; from videoldm_core.generate import main; sys.exit(main())"
    ended = command(program, str(path), limit=4096)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: Cannot write '")
    assert ended.stderr.count("\n") == 1
    assert not request.out.exists()
    generate(request)
    assert_same_videos(tmp_path / "out", uninterrupted)


def test_a_folder_that_cannot_be_written_is_one_sentence(released, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write '.*'.*; free space there or choose another"):
        generate(request_for(released, tmp_path / "file" / "v.mp4"))
