"""Regions of a DICOM picture known to carry text: deid's regions by device, a site's own, and what lies outside the ultrasound regions."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Any

from pydicom.dataset import Dataset

from site_agent.deid.textfinder import Box


@cache
def _device_rules(text: str) -> Any:
    """deid's regions by device, with a site's own behind them; only rules that name a region."""
    import tempfile
    from pathlib import Path

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from deid.config import DeidRecipe
        from deid.logger import bot

        bot.level = -5
        recipes = [DeidRecipe(deid="dicom")]
        if text:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "deid.site"
                file.write_text(text, "utf-8")
                recipes.append(DeidRecipe(deid=str(file), base=False))
    for recipe in recipes:
        for name, rules in list(recipe.deid["filter"].items()):
            recipe.deid["filter"][name] = [r for r in rules if r.get("coordinates")]
            if not recipe.deid["filter"][name]:
                del recipe.deid["filter"][name]
    return recipes


def known_regions(ds: Dataset, rows: int, columns: int, site_rules: str, found: list[Box]) -> tuple[list[Box], str]:
    """Regions known to carry text: deid's regions by device, and everything outside the ultrasound regions once any text was found there."""
    boxes: list[Box] = []
    regions = ds.get("SequenceOfUltrasoundRegions")
    if regions and str(ds.get("Modality", "")) == "US":
        inner = [_region(r) for r in regions]
        if all(r is not None and 0 <= r[0] < r[2] <= columns and 0 <= r[1] < r[3] <= rows for r in inner):
            top = min(r[1] for r in inner if r)
            bottom = max(r[3] for r in inner if r)
            left = min(r[0] for r in inner if r)
            right = max(r[2] for r in inner if r)
            boxes += [
                (0, 0, columns, top),
                (0, bottom, columns, rows),
                (0, top, left, bottom),
                (right, top, columns, bottom),
            ]
            outside = [b for b in boxes if b[2] > b[0] and b[3] > b[1]]
            if any(overlap(f, b) for f in found for b in outside):
                return outside, "outside the ultrasound regions"
            boxes = []
    from deid.dicom.pixels.detect import has_burned_pixels

    for recipe in _device_rules(site_rules):
        for hit in has_burned_pixels(ds, deid=recipe)["results"]:
            for _, text in hit["coordinates"]:
                try:
                    x0, y0, x1, y1 = (int(float(v)) for v in str(text).split(","))
                except ValueError:
                    continue
                box = (max(0, x0), max(0, y0), min(columns, x1), min(rows, y1))
                if box[2] > box[0] and box[3] > box[1]:
                    boxes.append(box)
    return boxes, "region of the device" if boxes else ""


def _region(region: Dataset) -> Box | None:
    try:
        return (
            int(region.RegionLocationMinX0),
            int(region.RegionLocationMinY0),
            int(region.RegionLocationMaxX1) + 1,
            int(region.RegionLocationMaxY1) + 1,
        )
    except (AttributeError, TypeError, ValueError):
        return None


def overlap(a: Box, b: Box) -> int:
    """Pixels two boxes share."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
