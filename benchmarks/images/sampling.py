"""Synthetic images per CPU second from a released bundle, and a PNG of some of them. JSON out.

python benchmarks/images/sampling.py BUNDLE [--grid FILE.png]
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.image_grid import strip
from medsynx.bundle import read_bundle
from medsynx.image_samplers import draw_images, open_image_sampler

IMAGES, TIMES, SHOWN = 5_000, 5, 14


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--grid", type=Path)
    args = parser.parse_args()
    bundle = read_bundle(args.bundle)
    rates = []
    for seed in range(TIMES):
        began = time.process_time()
        draw_images(bundle, IMAGES, seed)
        rates.append(IMAGES / (time.process_time() - began))
    if args.grid:
        files = {n.removeprefix("artefact/"): b for n, b in bundle.files.items()}
        sampler = open_image_sampler(bundle.json("sampler.json"), files, bundle.study)
        drawn = sampler.of(np.repeat(sampler.made, SHOWN), np.random.default_rng(0))
        rows = [np.asarray(Image.open(io.BytesIO(strip(drawn, k)))) for k in sampler.made]
        whole = Image.fromarray(np.concatenate(rows))
        whole.resize((2 * whole.width, 2 * whole.height), Image.Resampling.NEAREST).save(args.grid, optimize=True)
    print(json.dumps({"bundle": bundle.study.name, "images_per_cpu_s": round(statistics.median(rates))}))


if __name__ == "__main__":
    main()
