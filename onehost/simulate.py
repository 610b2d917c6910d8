"""``medsynx simulate``: the same strategy and site code as a deployed run, in one process and without sockets.

Each table, NPZ file or folder of images becomes a site with its own folder, policy, key and ledger under ``OUT/sites``. Noise is the operating
system's, always; a seed only fixes what is public.
"""

from __future__ import annotations

import math
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import direct
from medsynx import codec
from medsynx.bundle import new_key
from medsynx.errors import MedsynxError
from medsynx.generators import families_of
from medsynx.generators.base import ImagePatients, Patients
from medsynx.image_samplers import open_image_sampler
from medsynx.plan import Part
from medsynx.progress import listening
from medsynx.study import Study
from medsynx.tables import read_table
from site_agent.datasets import load_file, load_images
from site_agent.ingest import LocalTable
from site_agent.policy import Dataset, Limits, SiteFolder, SitePolicy
from site_agent.service import SiteService
from strategies.in_process import InProcessFederation
from strategies.publish import epsilons, publish
from strategies.rounds import Progress, Run

MINIMUM_PATIENTS = 20
ROW_FIGURES = ("tvd1", "tvd2", "tstr_auc", "trtr_auc")
IMAGE_FIGURES = ("tstr_auc", "trtr_auc", "tstr_balanced_accuracy", "trtr_balanced_accuracy", "frechet")


@dataclass
class SimulatedSite:
    """One hospital of a simulation."""

    name: str
    folder: SiteFolder
    table: LocalTable


def make_sites(
    study: Study, tables: list[Path], folder: Path, *, strict: bool, noise: bool = True
) -> list[SimulatedSite]:
    """A site folder for each table, with the study approved. Tables are read and checked before anything runs.

    Raises:
        MedsynxError: what is wrong with a table, with its name in front.
    """
    limits = Limits(
        epsilon_per_study=study.privacy.epsilon,
        epsilon_lifetime=study.privacy.epsilon,
        delta=study.privacy.delta,
        minimum_patients=MINIMUM_PATIENTS,
        families=families_of(study.family),
        trust=(study.privacy.trust,),
    )
    sites = []
    for number, path in enumerate(tables, start=1):
        name = f"site-{number:02d}"
        policy = SitePolicy(
            site=name, datasets={"table": Dataset(path=path.resolve())}, limits=limits, testing_without_noise=not noise
        )
        site = SiteFolder.create(folder / name, policy)
        try:
            table = load_file(path, study, site.key(), strict=strict, site=name)
            table.require(MINIMUM_PATIENTS)
        except MedsynxError as error:
            named = error.message if error.message.startswith(path.name) else f"{path.name}: {error.message}"
            raise MedsynxError(error.code, named, hint=error.hint) from None
        site.approve(study, "table")
        sites.append(SimulatedSite(name, site, table))
    return sites


def simulate(
    study: Study,
    tables: list[Path],
    out: Path,
    *,
    holdout: Path | None = None,
    seed: int | None = None,
    strict: bool = False,
    noise: bool = True,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Run a study over tables and publish its bundle.

    Args:
        tables: one file a site: tables; for an image study NPZ files, or folders with a folder of pictures a class.
        out: folder for bundle, report and sites' folders; made when absent, its ``sites`` folder is made anew.
        holdout: a table the sites never see, for figures computed directly (not private).
        seed: fixes the synthetic rows drawn for the direct figures; never the privacy noise.
        noise: False only in tests; the bundle is then marked as not private.

    Returns:
        The object that ``--json`` prints.
    """
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "sites", ignore_errors=True)
    telling = partial(listening, lambda what, done, of: watch(Progress(what, done, of, {})))
    with telling():
        sites = make_sites(study, tables, out / "sites", strict=strict, noise=noise)
        held_out = _held_out(study, holdout, strict) if holdout else None
    services = {s.name: SiteService(s.folder, simulated=True, strict=strict) for s in sites}
    federation = InProcessFederation({name: service.answer for name, service in services.items()})
    outcome = Run(study, federation, f"sim-{secrets.token_hex(4)}", watch, masked=False).conduct()

    figures = None
    if held_out is not None:
        with telling():
            figures = _direct(study, sites, held_out, outcome.artefact, seed)
    key = out / "signing.pem"
    if not key.exists():
        new_key(key)
    bundle, report, evaluation = publish(outcome, out, key, simulated=True, direct=figures)
    researcher, coordinator = epsilons(evaluation["privacy"])
    chosen, source = (figures, "direct") if figures else (outcome.figures or {}, "federated")
    return {
        "study": study.name,
        "digest": study.digest,
        "family": study.family.name,
        "seconds": round(outcome.seconds, 2),
        "rounds": len(outcome.rounds),
        "sites": len(sites),
        "patients": sum(s.table.parts["all"].count for s in sites),
        "private": outcome.private,
        "epsilon": researcher if math.isfinite(researcher) else None,
        "epsilon_coordinator": coordinator if math.isfinite(coordinator) else None,
        "delta": study.privacy.delta,
        **{name: _value(chosen, name) for name in (IMAGE_FIGURES if study.image else ROW_FIGURES)},
        "figures_source": source,
        "figures": {"direct": figures, "federated": outcome.figures},
        "gate": evaluation["gate"],
        "bytes_per_site": outcome.bytes_per_site,
        "bundle": str(bundle),
        "report": str(report),
        "notes": list(outcome.artefact.notes),
        "warnings": _warnings(study, sites),
    }


def _value(figures: dict[str, Any], name: str) -> float | None:
    value = figures.get(name, {}).get("value")
    return None if value is None else round(float(value), 4)


def _held_out(study: Study, path: Path, strict: bool) -> Patients:
    """The hold-out file's records; whose they are matters to no figure."""
    if study.image:
        return load_images(path, study, bytes(32), "test", strict=strict).parts["all"]
    codes = codec.encode(read_table(path), study, strict=strict)[0]
    return Patients(codes, np.arange(len(codes)))


def _direct(
    study: Study, sites: list[SimulatedSite], held_out: Patients, artefact: Any, seed: int | None
) -> dict[str, Any]:
    from medsynx.samplers import open_sampler

    part: Part = "train" if study.evaluation.federated else "all"
    real, rng = [s.table.parts[part] for s in sites], np.random.default_rng(seed)
    train = np.concatenate([p.codes for p in real])
    if isinstance(held_out, ImagePatients):
        from evaluation import images

        pixels = np.concatenate([p.images for p in real if isinstance(p, ImagePatients)])
        painter = open_image_sampler(artefact.sampler, artefact.files, study)
        return images.figures(
            painter.classes,
            images.Images(pixels, train[:, 0]),
            images.Images(held_out.images, held_out.codes[:, 0]),
            painter.sample(images.SYNTHETIC, rng),
        )
    sampler = open_sampler(artefact.sampler, artefact.files, study)
    return direct.figures(study, train, held_out.codes, sampler.sample(max(len(train), 1000), rng))


def _warnings(study: Study, sites: list[SimulatedSite]) -> list[str]:
    """What encoding did to the tables, in sentences. Printed by the operator of the simulation, who owns the tables."""
    out = []
    for site in sites:
        report = site.table.report
        if report.dropped_columns:
            out.append(f"{site.name}: not in the dictionary, left out: {', '.join(report.dropped_columns)}")
        for column, count in report.clipped.items():
            what = "images with pixels" if study.image else f"cells of {column}"
            out += [f"{site.name}: {count} {what} out of bounds, clipped"] if count else []
        out += [
            f"{site.name}: {n} cells of {c} hold no level of the dictionary, counted as other"
            for c, n in report.other.items()
            if n
        ]
        out += [f"{site.name}: {n} images left out: {why}" for why, n in report.left_out.items() if n]
        if site.table.capped:
            out.append(f"{site.name}: {site.table.capped} records above the cap a patient, left out")
    return out
