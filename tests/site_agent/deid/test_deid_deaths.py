"""The engine when something dies or fills up: the command, a worker, the disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medsynx.errors import MedsynxError
from site_agent.deid import engine
from site_agent.deid.engine import Folder, run
from site_agent.deid.sources import find
from site_agent.deid.worker import Settings, Worker, work
from tests.site_agent.deid.helpers import FAMILY, KEY, NO_PIXELS, deid, files_of, read_test_file, run_here, to_bytes


def gone(group):
    """Whether all processes of a group end within seconds; they are killed if not."""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
        return False
    except ProcessLookupError:
        return True


def test_killed_runs_leave_whole_files_only_and_are_resumed(tmp_path, key):
    src, dst = tmp_path / "src", tmp_path / "dst"
    src.mkdir()
    for i in range(60):
        ds = read_test_file("CT_small.dcm")
        ds.PatientID, ds.SOPInstanceUID = f"P{i % 7}", f"1.2.3.{i}"
        (src / f"{i}.dcm").write_bytes(to_bytes(ds))
    recipe = tmp_path / "r.yaml"
    recipe.write_text("clean_pixel_data: false\n")
    # files are filed one after the other in no less than this: none of these runs ends before it is killed
    slow = "import time; from site_agent.deid import engine; file = engine._Filing.file\n"
    slow += "engine._Filing.file = lambda *all: (time.sleep(0.2), file(*all))\nfrom medsynx.cli import main; main()"
    command = [sys.executable, "-c", slow, "deid", src, dst, "--key-file", key, "--recipe", recipe, "--json"]
    seen = 0
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 240
        while len(files_of(dst)) <= seen + 5 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)  # to the command alone: its workers go with it
        process.wait()
        assert gone(process.pid), "a worker stayed behind"
        seen = len(files_of(dst))
    assert 0 < seen < 60
    early = {p: p.read_bytes() for p in files_of(dst)}
    status, said = deid(src, dst, key, "--recipe", recipe)
    assert status == 0 and said["clean"] == 60 and said["from_an_earlier_run"] >= seen - 2
    assert len(files_of(dst)) == 60 and all(p.read_bytes() == data for p, data in early.items())


def unhurried(source, mac):
    """Stands in for a decoder that is still at the third file when the second cannot be filed."""
    if source.name.endswith("2.dat"):
        time.sleep(1)
    return work(source, mac)


def test_a_full_disk_stops_the_run_and_it_goes_on_later(src, tmp_path, monkeypatch):
    worker = Worker(Settings(KEY, NO_PIXELS, tmp_path))
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(MedsynxError) as full:
            worker.run(next(find([src])), "mac")
    assert full.value.code == "disk-full" and not list(tmp_path.glob("*.part"))
    real, calls = Path.replace, []

    def replace(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        return real(self, target)

    with monkeypatch.context() as m:
        m.setattr(Path, "replace", replace)
        m.setattr(engine, "work", unhurried)
        with pytest.raises(MedsynxError) as full:
            run_here([src], tmp_path / "dst")
    assert not multiprocessing.active_children(), "nobody writes on behind a run that has ended"
    assert full.value.code == "disk-full" and len(files_of(tmp_path / "dst")) == 1
    assert not (tmp_path / "dst" / ".medsynx" / "aside").exists()
    tally = run_here([src], tmp_path / "dst")
    assert tally.skipped == 1 and tally.verdicts["clean"] == 3


def crash(source, mac):
    """Stands in for a decoder that kills its process on one file."""
    if source.name.endswith("1.dat"):
        os.kill(os.getpid(), signal.SIGKILL)
    return work(source, mac)


def test_a_decoder_that_kills_its_process_costs_one_file(src, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "work", crash)
    for i in range(3, 9):  # more than are under way at once: some are handed out when the process is dead
        ds = read_test_file("CT_small.dcm")
        ds.PatientID, ds.SOPInstanceUID = "B2", f"1.2.3.{i}"
        (src / FAMILY / f"{i}.dat").write_bytes(to_bytes(ds))

    def dead(done, name):
        until = time.monotonic() + 60
        while done == 1 and multiprocessing.active_children() and time.monotonic() < until:
            time.sleep(0.05)

    tally = run([src], Folder(tmp_path / "dst"), "files", KEY, NO_PIXELS, progress=dead)
    assert tally.verdicts == {"clean": 8, "failed": 1} and tally.reasons == {"crashed": 1}
