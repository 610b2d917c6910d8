"""Identifiers planted in copies of real DICOM, and what is left of them: MedSynX beside its peers in one run.

    python benchmarks/deid/planted.py --tool PLANT_AND_CHECK.py --data $MEDSYNX_DATA/dicom --seed 7 --peers

The planting tool is not part of the project: it takes `plant --src --dst --seed` and `check --manifest --out --map --json`. Peers are fetched
by uv into environments of their own. Speed is wall time of the whole command for MedSynX (start-up, read-back and report included), of the loop
alone for the peers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import PACKAGES  # type: ignore[import-not-found]

HERE = Path(__file__).parent


def tool(path: Path, *arguments: object) -> None:
    """Run the planting tool."""
    subprocess.run([sys.executable, "-W", "ignore", str(path), *map(str, arguments)], check=True, capture_output=True)


def check(path: Path, planted: Path, out: Path, mapping: Path) -> dict[str, Any]:
    """Its verdict on one tool's output."""
    result = out.parent / f"{out.name}.check.json"
    tool(path, "check", "--manifest", planted / "manifest.json", "--out", out, "--map", mapping, "--json", result)
    body: dict[str, Any] = json.loads(result.read_text())
    return body


def ours(planted: Path, out: Path, *, pixels: bool, jobs: int = 1) -> float:
    """`medsynx deid`; returns seconds."""
    recipe = out.parent / f"{out.name}.yaml"
    recipe.write_text(f"clean_pixel_data: {str(pixels).lower()}\n")
    command = [
        sys.executable,
        "-m",
        "medsynx",
        "deid",
        planted,
        out,
        "--key-file",
        out.parent / "key",
        "--map",
        f"{out}.map.json",
    ]
    started = time.perf_counter()
    subprocess.run([*map(str, command), "--recipe", str(recipe), "--jobs", str(jobs)], capture_output=True, check=False)
    return time.perf_counter() - started


def peer(name: str, planted: Path, out: Path) -> float:
    """One peer in its own environment; returns seconds of its loop."""
    uv = Path(sys.executable).parent / "uv"
    packages = [w for p in PACKAGES[name] for w in ("--with", p)]
    command = [
        str(uv),
        "run",
        "--no-project",
        "--python",
        "3.11",
        *packages,
        "python",
        str(HERE / "peers.py"),
        name,
        planted,
        out,
    ]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=env, cwd=out.parent)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def line(name: str, r: dict[str, Any], seconds: float) -> str:
    """One row of the table."""
    share = 100 * r["leaks_total"] / max(1, r["planted_total"])
    burned = r["leaks"].get("burned_in", "0/0")
    links, intervals = r["referential_integrity"], r["date_intervals"]
    return (
        f"| {name} | {r['written']} | {r['leaks_total']}/{r['planted_total']} ({share:.1f} %) | {burned} | {len(r['unreadable'])} | "
        f"{len(r['pixel_changed'])} | {links['refs_resolved']} of {links['refs_resolved'] + links['refs_dangling'] + links['refs_removed']} | "
        f"{intervals['within_file_ok']} + {intervals['between_studies_ok']} | {r['kept_acquisition_attributes']} | {r['files'] / seconds:.0f} |"
    )


def main() -> None:
    """Plant, run everything, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tool", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEDSYNX_DATA", ".")) / "dicom")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--peers", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder) / "planted"
        tool(given.tool, "plant", "--src", given.data, "--dst", planted, "--seed", given.seed)
        (planted / "manifest.json").rename(Path(folder) / "manifest.json")
        manifest = Path(folder)
        print(
            "| tool | written | leaks / planted | burned-in left | unreadable | pixels changed | links | intervals | acq. attributes | files/s |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        for name, pixels in (("medsynx, headers only", False), ("medsynx", True)):
            out = Path(folder) / ("full" if pixels else "headers")
            seconds = ours(planted, out, pixels=pixels)
            result = check(given.tool, manifest, out, Path(f"{out}.map.json"))
            print(line(name, result, seconds), flush=True)
            if pixels:
                print(f"  changed without planted text: {result['pixel_changed']}", file=sys.stderr)
        for name in PACKAGES if given.peers else ():
            out = Path(folder) / name
            seconds = peer(name, planted, out)
            print(line(name, check(given.tool, manifest, out, Path(f"{out}.map.json")), seconds), flush=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\nseed {given.seed}, one process a tool; largest process {peak:.0f} MB")


if __name__ == "__main__":
    main()
