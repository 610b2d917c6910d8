"""A federation of four hospitals on MedMNIST-like data: quality of synthetic images, cost at the sites and the coordinator. JSON out.

python benchmarks/images/federated.py pneumonia --epsilon 1
python benchmarks/images/federated.py mednist --family moments

The training part is dealt to four sites with skewed labels and skewed sizes, and all of it trains (`evaluation.federated: false`); the test part is
the hold-out of ``medsynx simulate``. ``--validation`` judges on the validation part instead (for choosing settings). Noise is the operating
system's and never repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from medsynx.generators import get_family
from medsynx.generators.base import ImagePatients, State
from medsynx.study import Study, load_study, parse_study
from onehost.simulate import make_sites, simulate

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ["MEDSYNX_DATA"]) / "images"
SITES = 4
Part = tuple[np.ndarray, np.ndarray, np.ndarray]  # images, labels, patients
SLICES = [8, 11, 14, 17, 20]  # of 28: a public choice, the same for every volume


def single(pixels: np.ndarray, label: np.ndarray) -> Part:
    """Patients of one image each."""
    return pixels, label, np.arange(len(label))


def pneumonia(validation: bool) -> tuple[Study, Part, Part]:
    with np.load(DATA / "pneumoniamnist.npz") as held:
        part = {p: single(held[f"{p}_images"], held[f"{p}_labels"].ravel()) for p in ("train", "val", "test")}
    return load_study(ROOT / "configs/studies/pneumonia.yaml"), part["train"], part["val" if validation else "test"]


def mednist(validation: bool) -> tuple[Study, Part, Part]:
    """The local copy holds three of the six classes and no patients, so the split is by image: 900 train, 300 validate, 300 test."""
    names = np.array(["CXR", "HeadCT", "AbdomenCT"])
    with np.load(DATA / "mednist_cxr_headct_abdomenct_64.npz") as held:
        pixels, label = held["images"], names[held["labels"]]
    order = np.random.default_rng(0).permutation(len(pixels))
    train, val, test = np.split(order, [900, 1200])
    study = load_study(ROOT / "configs/studies/mednist.yaml").model_dump(mode="json")
    study["image"]["classes"] = sorted(names.tolist())
    tested = val if validation else test
    return parse_study(study), single(pixels[train], label[train]), single(pixels[tested], label[tested])


def adrenal(validation: bool) -> tuple[Study, Part, Part]:
    """AdrenalMNIST3D as slices: five images a patient, all with the patient's label."""
    with np.load(DATA / "adrenalmnist3d.npz") as held:
        part = {}
        for p in ("train", "val", "test"):
            slices = held[f"{p}_images"][:, SLICES]
            patient = np.repeat(np.arange(len(slices)), len(SLICES))
            part[p] = slices.reshape(-1, 28, 28), held[f"{p}_labels"].ravel()[patient], patient
    study = load_study(ROOT / "configs/studies/pneumonia.yaml").model_dump(mode="json")
    study["image"]["classes"] = ["normal", "hyperplasia"]
    study["privacy"] |= {"max_records_per_patient": len(SLICES), "records": "averaged"}
    return parse_study(study), part["train"], part["val" if validation else "test"]


def deal(part: Part, seed: int, folder: Path) -> list[Path]:
    """Four files of whole patients: sizes 1 to 4, and each class mostly at two of them."""
    pixels, label, patient = part
    rng = np.random.default_rng(seed)
    _, first = np.unique(patient, return_index=True)
    site = np.empty(len(first), int)
    for name in np.unique(label):
        at = np.flatnonzero(label[first] == name)
        site[at] = rng.choice(SITES, len(at), p=rng.dirichlet(np.array([0.4, 0.8, 1.2, 1.6])))
    for k in range(SITES):  # every site stays above the floor of patients
        site[rng.choice(len(site), 25, replace=False)] = k
    paths = [folder / f"{k}.npz" for k in range(SITES)]
    for k, path in enumerate(paths):
        here = site[patient] == k
        np.savez(path, images=pixels[here], labels=label[here], patients=patient[here])
    return paths


def costs(study: Study, paths: list[Path], folder: Path) -> dict[str, float]:
    """CPU seconds of a site per 10,000 images, and how far the sum over the sites is from the central one (without noise)."""
    tables = [site.table.parts["all"] for site in make_sites(study, paths, folder / "cost", strict=False)]
    parts = [p for p in tables if isinstance(p, ImagePatients)]
    before = np.cumsum([0] + [p.count for p in parts])
    every = ImagePatients(
        np.concatenate([p.codes for p in parts]),
        np.concatenate([p.patient + n for p, n in zip(parts, before, strict=False)]),
        np.concatenate([p.images for p in parts]),
    )
    from evaluation.programme import priced_plan

    family, priced = get_family(study.family.name), priced_plan(study).steps[0]
    began = time.process_time()
    central = family.contribute(study, priced, State(), every, {}).arrays["sum"]
    spent = time.process_time() - began
    summed = sum(family.contribute(study, priced, State(), p, {}).arrays["sum"] for p in parts)
    return {
        "site_cpu_s_per_10k": spent * 10_000 / len(every.images),
        "sum_vs_central_l2": float(np.linalg.norm(summed - central) / np.linalg.norm(central)),
    }


def once(study: Study, train: Part, tested: Part, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = deal(train, seed, folder)
        np.savez(folder / "tested.npz", images=tested[0], labels=tested[1], patients=tested[2])
        began = time.process_time()
        result = simulate(study, paths, folder / "out", holdout=folder / "tested.npz", seed=seed)
        cpu = time.process_time() - began
        found = result["figures"]["direct"]
        return {
            **{n: found[n]["value"] for n in found},
            "floor": found["frechet"]["floor"],
            "mean_only": found["frechet"]["mean_only"],
            "bytes_per_site": result["bytes_per_site"],
            "run_and_judge_cpu_s": cpu,
            "epsilon": result["epsilon"],
            **costs(study, paths, folder),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=["pneumonia", "mednist", "adrenal"])
    parser.add_argument("--family", default="mean-embedding")
    parser.add_argument("--parameters", type=json.loads, default={})
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--validation", action="store_true")
    args = parser.parse_args()
    study, train, tested = {"pneumonia": pneumonia, "mednist": mednist, "adrenal": adrenal}[args.set](args.validation)
    raw = study.model_dump(mode="json")
    raw["family"] = {"name": args.family, "parameters": args.parameters}
    raw["privacy"]["epsilon"], raw["evaluation"] = args.epsilon, {"federated": False}
    raw["image"]["shape"] = [args.size, args.size, 1]
    raw["rounds"]["quorum"] = SITES
    runs = [once(parse_study(raw), train, tested, seed) for seed in range(args.seeds)]
    print(
        json.dumps(
            {
                "set": args.set,
                "family": args.family,
                "epsilon": args.epsilon,
                "size": args.size,
                "judged_on": "validation" if args.validation else "test",
                "median": {n: round(statistics.median(r[n] for r in runs), 4) for n in runs[0]},
                "range": {n: [round(f(r[n] for r in runs), 4) for f in (min, max)] for n in runs[0]},
            }
        )
    )


if __name__ == "__main__":
    main()
