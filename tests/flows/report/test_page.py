"""The report is one file that needs nothing else, and tells what happened."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from flows.config.run import RunConfig
from flows.report import charts
from flows.report.page import write_report
from flows.steps.graph import Ledger, Made, Step, in_order
from videoldm_core.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
TABLE = SimpleNamespace(
    stages=[
        SimpleNamespace(name=name, model_dump=lambda mode, name=name: {"name": name})
        for name in ("image", "temporal")
    ]
)


def write_video(path: Path, frames: int = 12, size: tuple[int, int] = (64, 48)) -> None:
    """Frame i is grey of level 20 i, and of 240 from the twelfth on; 8 frames a second."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast"}
        for index in range(frames):
            frame = np.full((height, width, 3), 20 * min(index, 12), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))


def publish_stage(folder: Path, name: str, *, passed: bool, parents: dict[str, str]) -> Path:
    (folder / "previews").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(folder / "previews" / "grid.png")
    lines = [{"time": 1.0, "total_steps": 3, "remark": f"{name} looks at pixels <i>alone</i>"}]
    lines += [{"time": 2.0, "step": s, "metrics": {"loss": 1 / (s + 1)}} for s in range(3)]
    lines += [{"time": 3.0, "step": 3, "image": "previews/grid.png", "name": "samples <b>"}]
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "journal.jsonl").write_text(text + "\n")
    row = {
        "stage": name,
        "metric": "denoising loss",
        "unit": "",
        "higher_is_better": False,
        "value": [0.5, 0.01],
        "baselines": [["the image model", 0.4, 0.01, True], ["linear", 0.9, 0.0, False]],
        "passed": passed,
    }
    published = {"worth": [row], "parents": parents, "data": {"latents": "d" * 64}, "step": 3}
    path = folder / "stage.json"
    path.write_text(json.dumps(published))
    return path


@pytest.fixture
def page(tmp_path) -> str:
    run = RunConfig(preset="tiny", name="demo", out=tmp_path, price_per_process_hour=2.0)
    image = publish_stage(run.stage_folder("image"), "image", passed=True, parents={})
    temporal = publish_stage(
        run.stage_folder("temporal"), "temporal", passed=False, parents={"image": "a" * 64}
    )
    write_video(tmp_path / "video.mp4")
    pins = {
        name: {"model": f"demo-{name}", "version": 3, "digest": "e" * 64}
        for name in ("image", "temporal")
    }
    release = {"name": "demo", "version": 1, "stages": pins}
    (tmp_path / "release.json").write_text(json.dumps(release))
    steps = [
        Step(name="temporal", title="train temporal", needs=("image",), make=lambda a: None),
        Step(name="image", title="train image", make=lambda a: None),
    ]
    ledger = Ledger(tmp_path)
    made = Made(output=image, process_seconds=7200)
    ledger.enter(steps[1], made, started=100.0, seconds=3600)
    ledger.enter(steps[0], Made(output=temporal), started=3700.0, seconds=60)
    return write_report(run, TABLE, in_order(steps)).read_text()


def test_the_page_needs_no_other_file(page):
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    assert "@import" not in page


REPORT = """
import resource, sys
from pathlib import Path
from tests.flows.report.test_page import report_of
from flows.report import video_preview
import av, jinja2, PIL.Image
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
before = peak()
report_of(Path(sys.argv[1]))
print(peak() - before)
"""


def report_of(out: Path) -> Path:
    step = Step(name="image", title="train image", make=lambda a: None)
    return write_report(RunConfig(preset="tiny", name="demo", out=out), TABLE, [step])


def test_a_video_larger_than_the_page_is_linked_and_shown_in_small(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.report.video_preview.FILM_BYTES", 8_000)
    write_video(tmp_path / "video.mp4", frames=2000, size=(192, 96))
    assert (tmp_path / "video.mp4").stat().st_size > 8_000
    page = report_of(tmp_path).read_text()
    assert re.findall(r'href="([^"]*)"', page) == ["video.mp4"]
    assert "2000 frames of 192x96, 250.0 s" in page
    assert page.count('alt="frame"') == 8
    film = base64.b64decode(re.findall(r"data:video/mp4;base64,([^\"]*)", page)[0])
    assert len(film) <= 8_000
    with av.open(io.BytesIO(film)) as container:
        shown = [frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)]
    assert len(shown) == 80  # its first ten seconds
    assert shown[0] == pytest.approx(0, abs=20)
    assert shown[6] == pytest.approx(120, abs=20)


def test_of_a_video_whose_beginning_is_too_large_there_are_stills_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.report.video_preview.FILM_BYTES", 100)
    write_video(tmp_path / "video.mp4")
    page = report_of(tmp_path).read_text()
    assert "data:video" not in page
    assert 'href="video.mp4"' in page
    assert page.count('alt="frame"') == 8


def test_the_memory_of_a_report_does_not_grow_with_its_video(tmp_path):
    write_video(tmp_path / "video.mp4", frames=900, size=(1024, 512))  # 1.4 GB of frames
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", REPORT, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 250  # MiB


def test_a_damaged_video_costs_the_page_its_video_alone(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"not a video")
    page = report_of(tmp_path).read_text()
    assert "The video cannot be shown: " in page
    assert 'href="video.mp4"' in page


def test_a_picture_outside_its_stage_is_not_put_into_the_page(tmp_path):
    run = RunConfig(preset="tiny", name="demo", out=tmp_path)
    publish_stage(run.stage_folder("image"), "image", passed=True, parents={})
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    journal = run.stage_folder("image") / "journal.jsonl"
    for image in ("../../secret.png", str(secret), 3, None):
        line = {"time": 9.0, "step": 3, "image": image, "name": f"{image}"}
        journal.write_text(journal.read_text() + json.dumps(line) + "\n")
    page = report_of(tmp_path).read_text()
    assert base64.b64encode(b"secret").decode() not in page
    assert "samples" in page


def test_a_damaged_record_of_the_run_is_a_sentence(tmp_path):
    (tmp_path / "release.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"Cannot read '.*release\.json' .*levels deep"):
        report_of(tmp_path)


def test_the_page_tells_worth_cost_and_lineage(page):
    assert "Not worth it yet: temporal" in page
    assert "the image model 0.4 ± 0.01, linear 0.9 (shown)" in page
    assert "2.000 process-hours" in page
    assert ">1 h 00 min<" in page
    assert ">price 4.0000<" in page
    assert "demo-temporal v3" in page
    assert f"image <code>{'a' * 12}</code>" in page
    assert "demo-release v1" in page


def test_the_page_shows_video_frames_previews_and_curves(page):
    assert page.count("data:video/mp4;base64,") == 1
    assert page.count('alt="frame"') == 8
    assert page.count("data:image/png;base64,") == 8 + 2
    assert page.count("<polyline") == 2
    assert 'class="node passed"' in page
    assert 'class="node failed"' in page


def test_the_page_repeats_what_a_stage_remarked(page):
    assert "temporal looks at pixels &lt;i&gt;alone&lt;/i&gt;." in page


def test_texts_from_outside_are_escaped(page):
    assert "samples &lt;b&gt;" in page
    assert "samples <b>" not in page


def test_a_run_that_has_only_begun_has_a_page_too(tmp_path):
    run = RunConfig(preset="tiny", name="demo", out=tmp_path)
    step = Step(name="image", title="train image", make=lambda a: None)
    assert "not made" in write_report(run, TABLE, [step]).read_text()


def test_implied_edges_are_not_drawn():
    nodes = [
        charts.Node(name=name, title=name, needs=needs, lines=(), kind="plain")
        for name, needs in [("a", ()), ("b", ("a",)), ("c", ("a", "b"))]
    ]
    assert charts.graph(nodes).count('class="edge"') == 2


def test_a_long_curve_is_averaged_and_not_numbers_are_left_out():
    points = [(float(x), 1.0) for x in range(5000)] + [(5000.0, float("nan"))]
    drawn = charts.curves({"loss": points})
    assert len(re.findall(r"\d+\.\d,\d+\.\d", drawn)) <= charts.MOST_POINTS
    assert "nan" not in drawn
