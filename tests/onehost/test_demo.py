"""The demo from end to end, as `make demo` runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from medsynx.bundle import read_bundle

pytestmark = [pytest.mark.federation, pytest.mark.timeout(600)]


def left_over(folder, seconds=30.0) -> str:
    """Processes of a demo that do not end by themselves: those whose parent was killed are killed by the kernel, in its time."""
    until = time.monotonic() + seconds
    while (
        found := subprocess.run(["pgrep", "-af", str(folder)], capture_output=True, text=True).stdout
    ) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def test_four_hospitals_to_a_download(tmp_path):
    folder = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "medsynx", "demo", "--dir", str(folder), "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["sites"] == ["hillview", "lakeside", "northgate", "riverside"] and summary["patients"] == 7874
    assert summary["epsilon"] <= 3.0 and summary["epsilon_coordinator"] <= 3.0
    assert summary["figures"]["tstr_auc"]["value"] > 0.65
    assert len(pd.read_csv(summary["rows"])) == 1000
    assert "Privacy statement" in Path(summary["report"]).read_text()
    assert read_bundle(Path(summary["bundle"])).private
    assert left_over(folder) == ""


def test_ctrl_c_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "demo"
    with subprocess.Popen(
        [sys.executable, "-m", "medsynx", "demo", "--dir", str(folder), "--json"], stderr=subprocess.DEVNULL
    ) as demo:
        until = time.monotonic() + 300
        while not (folder / "pids.json").exists() and time.monotonic() < until:
            time.sleep(0.2)
        assert (folder / "pids.json").exists()
        os.kill(demo.pid, signal.SIGINT)
        assert demo.wait(60) == 130
    assert left_over(folder) == ""
