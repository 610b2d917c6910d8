"""Burned-in text: how much of what is drawn is blanked, by modality and by size, and how many clean pictures are blanked for nothing.

    python benchmarks/deid/burned_in.py --data $MEDSYNX_DATA/dicom --seed 1

One picture a folder and modality (at most ``--most`` of a modality). Each is cleaned as it is, then with lines of text drawn at a random place: font,
size, polarity and quarter turns vary. A line counts as blanked when its region no longer correlates with its mask (below 0.3) in any frame.
Pictures that carry text of their own are named in ``has_text.txt``, by eye; they are left out of the false blanking.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from matplotlib import get_data_path
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.uid import ExplicitVRLittleEndian

from site_agent.deid.pixels import clean_pixels
from site_agent.deid.quarantine import Quarantine

FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmss10")
SMALLEST_PICTURE = 128
NAMES = "Harrow Venter Okafor Lindqvist Moreau Castellan Ferreira Nakamura Ostrowski Halvorsen Quimby Drummond".split()


def decodable(data: Path) -> list[tuple[str, pydicom.FileDataset, NDArray[Any]]]:
    """Uncompressed copies of the pictures of a folder, with their samples."""
    out = []
    for file in sorted(p for p in data.rglob("*") if p.is_file()):
        try:
            ds = pydicom.dcmread(file)
            if min(int(ds.Rows), int(ds.Columns)) < SMALLEST_PICTURE or ds.BitsAllocated == 1:
                continue
            if ds.file_meta.TransferSyntaxUID.is_compressed or not ds.file_meta.TransferSyntaxUID.is_little_endian:
                ds.decompress(as_rgb=True, generate_instance_uid=False)
            samples = ds.pixel_array.copy()
        except Exception:  # not a picture, or not one pydicom decodes
            continue
        if float(samples.max()) > float(samples.min()):
            out.append((file.relative_to(data).as_posix(), ds, samples))
    return out


def chosen(data: Path, most: int) -> list[tuple[str, pydicom.FileDataset, NDArray[Any]]]:
    """At most so many pictures of a modality, from as many folders as there are."""
    groups: dict[str, dict[tuple[str, int], Any]] = defaultdict(dict)
    for name, ds, samples in decodable(data):
        modality = str(ds.get("Modality", "") or "none")
        if modality not in ("SEG", "RTDOSE"):
            place = (str(Path(name).parent), sum(k[0] == str(Path(name).parent) for k in groups[modality]))
            groups[modality][place] = (name, ds, samples)
    return [
        row for group in groups.values() for _, row in sorted(group.items(), key=lambda kv: (kv[0][1], kv[0][0]))[:most]
    ]


def mask_of(text: str, size: int, font: str, turns: int) -> NDArray[np.bool_]:
    """The text's strokes, shape (rows, columns)."""
    face = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{font}.ttf", size)
    left, top, right, bottom = face.getbbox(text)
    image = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(image).text((2 - left, 2 - top), text, fill=255, font=face)
    return np.rot90(np.asarray(image) > 127, turns)


def draw(
    ds: pydicom.FileDataset, samples: NDArray[Any], size: int, rng: random.Random
) -> tuple[Any, tuple[int, int], NDArray[np.bool_]] | None:
    """A copy with one line of text; None when it does not fit."""
    name = rng.choice(NAMES)
    text = rng.choice(
        [
            f"{name.upper()}, {rng.choice(NAMES)}",
            f"{rng.choice(NAMES)} {name} 19{rng.randint(30, 99)}-0{rng.randint(1, 9)}-1{rng.randint(0, 9)}",
        ]
    )
    mask = mask_of(text, size, rng.choice(FONTS), 1 if rng.random() < 0.15 else 0)
    rows, columns = int(ds.Rows), int(ds.Columns)
    if mask.shape[0] + 8 > rows or mask.shape[1] + 8 > columns:
        return None
    y, x = rng.randint(4, rows - mask.shape[0] - 4), rng.randint(4, columns - mask.shape[1] - 4)
    frames = samples.copy() if int(ds.get("NumberOfFrames", 1) or 1) > 1 else samples[None].copy()
    low, high = (int(samples.min()), int(samples.max())) if samples.dtype != np.uint8 else (0, 255)
    if str(ds.PhotometricInterpretation) == "PALETTE COLOR":
        luminance = sum(
            np.frombuffer(ds[f"{c}PaletteColorLookupTableData"].value, "<u2").astype(int)
            for c in ("Red", "Green", "Blue")
        )
        low, high = int(np.argmin(luminance)), int(np.argmax(luminance))
    bright = rng.random() < 0.7
    ink, ground = (high, low) if bright else (low, high)
    region = frames[:, y : y + mask.shape[0], x : x + mask.shape[1]]
    grey = region.reshape(*region.shape[:3], -1).mean(axis=3).astype(float)
    contrast = abs(float(np.median(grey)) - ink) / max(1, high - low)
    if rng.random() < 0.3 or contrast < 0.35:
        region[:] = ground
    region[:, mask] = ink
    out = copy.deepcopy(ds)
    out.PixelData = frames.tobytes() + b"\0" * (frames.nbytes % 2)
    out["PixelData"].VR = "OW" if int(ds.BitsAllocated) > 8 else "OB"
    if frames.ndim == 4:
        out.PlanarConfiguration = 0
    out.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return out, (y, x), mask


def legible(ds: Any, at: tuple[int, int], mask: NDArray[np.bool_]) -> bool:
    """Whether the region still looks like the text in some frame."""
    samples = ds.pixel_array
    frames = samples if int(ds.get("NumberOfFrames", 1) or 1) > 1 else samples[None]
    for frame in frames:
        region = frame[at[0] : at[0] + mask.shape[0], at[1] : at[1] + mask.shape[1]].astype(float)
        grey = region.reshape(*region.shape[:2], -1).mean(axis=2)
        if grey.std() > 1e-9 and abs(float(np.corrcoef(grey.ravel(), mask.ravel().astype(float))[0, 1])) > 0.3:
            return True
    return False


def main() -> None:
    """Draw, clean, count; one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("MEDSYNX_DATA", ".")) / "dicom")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--sizes", type=int, nargs="+", default=[12, 16, 24, 40, 64])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    own_text = set((Path(__file__).parent / "has_text.txt").read_text().split())
    rng = random.Random(given.seed)
    false, clean, seconds = [], 0, []
    hits: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    missed = []
    for name, ds, samples in chosen(given.data, given.most):
        modality = str(ds.get("Modality", "") or "none")
        if name not in own_text:
            clean += 1
            copy_ = copy.deepcopy(ds)
            started = time.process_time()
            try:
                changed = clean_pixels(copy_).changed
            except Quarantine:
                changed = True
            seconds.append(time.process_time() - started)
            false += [name] if changed else []
        for size in given.sizes:
            drawn = draw(ds, samples, size, rng)
            if drawn is None:
                continue
            planted, at, mask = drawn
            try:
                clean_pixels(planted)
                found = not legible(planted, at, mask)
            except Quarantine:
                found = True
            for key in (modality, f"{size} px", "all"):
                hits[key][0] += found
                hits[key][1] += 1
            if not found:
                missed.append(f"{name} {size} px at {at} {mask.shape}")
    result = {
        "seed": given.seed,
        "recall": {k: f"{a}/{b} ({a / b:.0%})" for k, (a, b) in hits.items()},
        "missed": missed,
        "clean_pictures": clean,
        "blanked_for_nothing": false,
        "seconds_a_picture": {
            "median": round(float(np.median(seconds)), 2),
            "mean": round(float(np.mean(seconds)), 2),
            "most": round(max(seconds), 2),
        },
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
