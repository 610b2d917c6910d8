"""Face removal: what it costs in brain and time, and how much of the face goes.

    python benchmarks/deid/defacing.py --data $MEDSYNX_DATA/nifti --json figures.json

Every volume of the folder is cleaned: seconds, verdict, share of the outline removed, and brain voxels changed where ``<name>_brain.nii.gz`` lies
beside it. Then heads under random motions (to 20 degrees and 30 mm, size .6 to 1.1, noise): pydeface's mean head, for which the place of the face is
known (pydeface's mask spares the brain: what goes beyond it by more than 4 mm is counted), and every volume with a brain beside it. One core.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, binary_dilation
from scipy.spatial.transform import Rotation

from site_agent.deid.faces import find_face
from site_agent.deid.keys import SiteKey
from site_agent.deid.nifti import clean_nifti
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.recipe import Recipe


def voxels(file: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    image = nib.load(file)
    return np.asarray(image.dataobj), image.affine


def brain_beside(file: Path) -> Path:
    return file.with_name(file.name.split(".")[0] + "_brain.nii.gz")


def one(file: Path, key: SiteKey) -> dict[str, Any]:
    """A file, as the site agent cleans it."""
    row: dict[str, Any] = {"volume": file.name}
    started = time.perf_counter()
    try:
        out = clean_nifti(file.read_bytes(), file.name, Recipe(), key)
        row |= {"verdict": out.notes["face"], "fit": out.notes["fit"], "outline removed": out.notes["removed"]}
        beside = brain_beside(file)
        if beside.exists():
            raw = gzip.decompress(out.data) if out.data[:2] == b"\x1f\x8b" else out.data
            after = np.asarray(nib.Nifti1Image.from_bytes(raw).dataobj)
            row["brain voxels changed"] = int(((voxels(file)[0] != after) & (voxels(beside)[0] > 0)).sum())
    except Quarantine as refused:
        row["verdict"] = str(refused)
    row["seconds"] = round(time.perf_counter() - started, 1)
    return row


def mean_head() -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], NDArray[Any]]:
    """The template at 2 mm: samples, its face, what must stay, its affine."""
    spec = importlib.util.find_spec("pydeface")
    assert spec and spec.submodule_search_locations
    data = Path(spec.submodule_search_locations[0]) / "data"
    head, affine = voxels(data / "mean_reg2mean.nii.gz")
    mask = voxels(data / "facemask.nii.gz")[0][::2, ::2, ::2] < 0.5
    volume = head[::2, ::2, ::2].astype(np.float32)
    body = volume > 60
    return volume, mask & body, body & ~binary_dilation(mask, iterations=2), affine @ np.diag([2, 2, 2, 1])


def with_brain(file: Path, beside: Path) -> tuple[NDArray[Any], None, NDArray[np.bool_], NDArray[Any]]:
    """A head, and its brain as what must stay."""
    head, affine = voxels(file)
    return head.astype(np.float32), None, voxels(beside)[0] > 0, affine


def told(row: dict[str, Any]) -> None:
    print("  ", ", ".join(f"{k} {v}" for k, v in row.items()), flush=True)


def moved(
    head: tuple[NDArray[Any], NDArray[np.bool_] | None, NDArray[np.bool_], NDArray[Any]], moves: int, seed: int
) -> list[dict[str, Any]]:
    """A head (samples, face or None, what must stay, affine) under random motions, resampled on a grid of its own."""
    rng = np.random.default_rng(seed)
    volume, face, stays, affine = head
    rows = []
    for _ in range(moves):
        size, turn = rng.uniform(0.6, 1.1), rng.uniform(-20, 20, 3)
        noise = float(rng.uniform(0, 0.1))
        motion = np.eye(4)
        motion[:3, :3] = size * Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
        motion[:3, 3] = rng.uniform(-30, 30, 3)
        placed = motion @ affine
        centre = (placed @ [*(np.array(volume.shape) / 2), 1])[:3]
        grid = np.diag([1.8, 1.8, 1.8, 1.0])
        grid[:3, 3] = centre - 0.9 * 150
        onto = np.linalg.inv(placed) @ grid
        seen = affine_transform(volume, onto, output_shape=(150, 150, 150), order=1)
        level = noise * float(np.percentile(volume, 99))
        seen = np.hypot(seen + rng.normal(0, level, seen.shape), rng.normal(0, level, seen.shape)).astype(np.float32)
        row = {"size": round(size, 2), "turn": [round(t) for t in turn], "noise": round(noise, 3)}
        started = time.perf_counter()
        try:
            verdict = find_face(seen, grid)
            row |= {"verdict": verdict.kind, "fit": round(verdict.fit or 0, 2)}
            if verdict.keep is not None:
                if face is not None:
                    row["face removed"] = round(float((~verdict.keep)[_with(face, onto)].mean()), 4)
                row["brain voxels changed" if face is None else "beyond the face"] = int(
                    (~verdict.keep & _with(stays, onto)).sum()
                )
        except Quarantine as refused:
            row["verdict"] = str(refused)
        rows.append(row | {"seconds": round(time.perf_counter() - started, 1)})
        told(rows[-1])
    return rows


def _with(mask: NDArray[np.bool_], onto: NDArray[Any]) -> NDArray[np.bool_]:
    return affine_transform(mask.astype(np.uint8), onto, output_shape=(150, 150, 150), order=0) > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--moves", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    key = SiteKey(bytes(32))
    files = sorted(p for p in args.data.rglob("*") if p.name.endswith((".nii", ".nii.gz")))
    figures: dict[str, list[dict[str, Any]]] = {"volumes": []}
    for file in files:
        figures["volumes"].append(one(file, key))
        told(figures["volumes"][-1])
    heads: dict[str, Any] = {"mean head": mean_head()}
    heads |= {p.name: with_brain(p, brain_beside(p)) for p in files if brain_beside(p).exists()}
    for name, head in heads.items():
        print(f"{name}, moved", flush=True)
        figures[name] = moved(head, args.moves, args.seed)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
