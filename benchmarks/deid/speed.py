"""Files a second of `medsynx deid` beside its peers, and its memory over a long run.

    python benchmarks/deid/speed.py --data $MEDSYNX_DATA/dicom [--files 10000] [--peers] [--json FILE]

Two sets: the `.dcm` files of DATA, and copies of pydicom's CT_small.dcm with new UIDs, 50 a patient. Seconds are wall time: of the whole command
for MedSynX (start-up, read-back, sync and report included), of the loop alone for the peers. CPU counts every process the command started.
Memory is the resident set of all of them while one run passes 1,000, 5,000 and 10,000 files. Reads /proc: Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pydicom
from peers import PACKAGES  # type: ignore[import-not-found]
from planted import peer  # type: ignore[import-not-found]
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

PAGE = os.sysconf("SC_PAGE_SIZE")
MARKS = (1_000, 5_000, 10_000)
PATIENT = 50  # files


def copies(folder: Path, count: int) -> Path:
    """CT_small as many images of several patients."""
    folder.mkdir()
    ds = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    for i in range(count):
        if i % PATIENT == 0:
            ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = f"SPEED{i:06}", generate_uid(), generate_uid()
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        ds.InstanceNumber = str(i % PATIENT)
        ds.save_as(folder / f"{i:06}.dcm")
    return folder


def resident(pid: int) -> int:
    """Bytes in memory of a process and its descendants; pages they share count for each."""
    try:
        total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += resident(int(child))
    except OSError:  # it ended meanwhile
        return 0
    return total


def done(dst: Path) -> int:
    """Files of a running command that have their row."""
    try:
        with sqlite3.connect(f"file:{dst}/.medsynx/catalogue.sqlite?mode=ro", uri=True, timeout=5) as db:
            return int(db.execute("SELECT COUNT(*) FROM file").fetchone()[0])
    except sqlite3.Error:
        return 0


def ours(src: Path, dst: Path, *, pixels: bool) -> dict[str, Any]:
    """One run in one process: seconds, CPU seconds, verdicts, and MB in memory at the marks."""
    recipe = dst.parent / f"{dst.name}.yaml"
    recipe.write_text(f"clean_pixel_data: {str(pixels).lower()}\n")
    command = [sys.executable, "-m", "medsynx", "deid", src, dst, "--key-file", dst.parent / "key", "--recipe", recipe]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen([*map(str, command), "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    memory: dict[str, int] = {}
    while process.poll() is None:
        passed, now = done(dst), resident(process.pid)
        for mark in MARKS:
            if passed >= 0.99 * mark:  # the run may end between two looks
                memory.setdefault(str(mark), now >> 20)
        time.sleep(0.25)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.stdout
    said = json.loads(process.stdout.read())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": seconds,
        "cpu": cpu,
        "memory_mb": memory,
        "clean": said["clean"],
        "quarantined": said["quarantined"],
    }


def main() -> None:
    """Run everything on one machine, one tool after the other; print a table, and write it as JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--peers", action="store_true", help="fetched by uv into environments of their own")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(tool: str, data: str, files: int, result: dict[str, Any]) -> None:
        rows.append({"tool": tool, "set": data, "files": files, **result})
        cpu = f"{files / result['cpu']:.0f}" if "cpu" in result else ""
        print(
            f"| {tool} | {data} | {files:,} | {files / result['seconds']:.1f} | {cpu} | {result.get('memory_mb') or ''} |",
            flush=True,
        )

    print(
        "| tool | set | files | files/s | files/s of CPU | MB in memory after so many files |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = folder / "real"
        real.mkdir()
        for i, file in enumerate(sorted(given.data.rglob("*.dcm"))):
            shutil.copy(file, real / f"{i:05}.dcm")
        sets = {"data": real, "CT_small copies": copies(folder / "copies", min(1_000, given.files))}
        for label, src in sets.items():
            count = len(list(src.iterdir()))
            for tool, pixels in (("medsynx, headers only", False), ("medsynx, text detection", True)):
                if not (pixels and src is not real):
                    add(tool, label, count, ours(src, folder / f"{src.name}-{pixels}", pixels=pixels))
            for tool in PACKAGES if given.peers else ():
                add(tool, label, count, {"seconds": peer(tool, src, folder / f"{src.name}-{tool}")})
        long = copies(folder / "long", given.files)
        add("medsynx, headers only", "CT_small copies", given.files, ours(long, folder / "long-out", pixels=False))
    if given.json:
        given.json.write_text(json.dumps({"cores": os.cpu_count(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
