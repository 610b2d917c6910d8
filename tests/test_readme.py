"""Every command of the README runs as it stands there."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from pydicom.data import get_testdata_file
from typer.main import get_command

from medsynx.cli import app
from tests.conftest import RAW_STUDY, small_table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def commands(fence: str) -> list[str]:
    blocks = re.findall(rf"```{fence}\n(.*?)```", README, re.S)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    for seed, name in enumerate(("north", "south", "west", "holdout")):
        small_table(400, seed).to_csv(folder / f"{name}.csv", index=False)
    raw = {**RAW_STUDY, "privacy": {**RAW_STUDY["privacy"], "epsilon": 1.0}}
    (folder / "study.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    (folder / "scans").mkdir()
    shutil.copy(str(get_testdata_file("CT_small.dcm", download=False)), folder / "scans")
    return folder


@pytest.mark.parametrize("command", commands("bash"))
def test_command(desk, command):
    words = shlex.split(command)
    assert words[0] == "medsynx"
    done = subprocess.run([sys.executable, "-m", *words], cwd=desk, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if "generate" in words:
        assert len((desk / "rows.csv").read_text().splitlines()) == 1001


def test_the_long_running_ones_exist():
    """`make` targets and servers are started by other tests; here their names and options are checked."""
    for command in commands("sh"):
        words = shlex.split(command.split("   #")[0])
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
            continue
        options = [w for w in words if w.startswith("--")]
        head, at = [], get_command(app)
        while isinstance(at, click.Group) and (at := at.get_command(click.Context(at), words[1 + len(head)])):
            head.append(words[1 + len(head)])
        assert head, command
        shown = subprocess.run([sys.executable, "-m", "medsynx", *head, "--help"], capture_output=True, text=True)
        assert shown.returncode == 0 and all(o in shown.stdout for o in options), shown.stdout
