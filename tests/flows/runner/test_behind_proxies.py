"""The whole command behind proxies that answer nobody: what is on this machine needs none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.runner.test_proxies import Listener

ROOT = Path(__file__).parents[3]


@pytest.mark.timeout(900)
def test_admitting_videos_behind_proxies_asks_none_of_them(tmp_path, counting_video):
    folder = counting_video(folder=tmp_path / "videos").parent  # too short for any stage
    proxy = Listener()
    named = {f"{kind}_proxy": f"http://{proxy.address}" for kind in ("http", "https", "HTTP")}
    named |= {"ALL_PROXY": f"socks5://{proxy.address}", "no_proxy": "corp.example"}
    named |= {"PYTHONPATH": str(ROOT)}
    others = {name: text for name, text in os.environ.items() if not name.startswith("PREFECT")}
    out = tmp_path / "out"
    result = subprocess.run(
        [sys.executable, "-m", "flows.cli", "admit", "tiny", f"videos={folder}", f"out={out}"],
        env=others | named,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (out / "admission.html").is_file(), result.stderr
    assert "Traceback" not in result.stderr
    assert "Prefect's page while this runs: http://127.0.0.1:" in result.stdout
    assert f"The page asks for the password in {out / 'prefect-password.txt'}" in result.stdout
    assert not (out / "prefect-password.txt").exists(), "it is of no use any more"
    assert proxy.visits() == 0
    proxy.close()
