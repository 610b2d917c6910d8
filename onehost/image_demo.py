"""``medsynx demo --images``: hospitals of made-up radiographs, de-identified into each site's vault before the same federation begins."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medsynx.errors import MedsynxError
from medsynx.processes import Supervisor
from medsynx.study import Study
from onehost.demo import Stage, enrol, make_anew, read_study
from onehost.hospitals import HOSPITALS
from onehost.scans import Patient, identifiers, make_patients, write_archive
from site_agent.deid.keys import SiteKey
from site_agent.policy import Dataset, Labels, SiteFolder
from site_agent.vault import Vault

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = 200  #: in the researcher's ZIP
DATASET = "chest"
SICK = (0.35, 0.45, 0.55, 0.65)  #: share of patients with an opacity, hospital by hospital
COLUMNS, LINES, ENLARGED = 12, 2, 4  #: of a class in the picture, and pixels a pixel


@dataclass
class Archives:
    """What the hospitals have before anything is de-identified: each radiograph's file and its patient, by hospital."""

    folder: Path
    radiographs: dict[str, list[tuple[Path, Patient]]]

    @property
    def files(self) -> int:
        """Number of radiographs."""
        return sum(map(len, self.radiographs.values()))


@dataclass
class Intake:
    """What came of the archives.

    Attributes:
        reasons: why files were held back -> how many.
        blanked: files with letters blanked in their pixels.
        planted: identifiers in the archives' radiographs.
        left: identifiers found in the vaults, whatever file they are in.
    """

    clean: int = 0
    quarantined: int = 0
    failed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    blanked: int = 0
    planted: int = 0
    left: int = 0
    seconds: float = 0.0


def set_up(folder: Path, family: str | None, patients: int) -> tuple[Stage, Archives]:
    """Make the hospitals' archives, and sites that approve the study; each site's recipe names the dictionary of the findings."""
    make_anew(folder)
    study = read_study("image-demo-study.yaml", family)
    radiographs = {}
    for seed, ((name, share), sick) in enumerate(zip(HOSPITALS.items(), SICK, strict=True)):
        made = make_patients(name, round(patients * share), sick, seed)
        radiographs[name] = write_archive(folder / "archives" / name, made, seed)
    here = Dataset(vault=DATASET, labels=Labels(column="finding"))
    smallest = round(patients * min(HOSPITALS.values()))
    stage = enrol(folder, study, DATASET, dict.fromkeys(HOSPITALS, here), patients, minimum=min(100, smallest))
    for site in stage.sites.values():
        shutil.copy(str(files("onehost").joinpath("findings.yaml")), site / "findings.yaml")
        (site / "recipe.yaml").write_text(yaml.safe_dump({"table": {"study": "findings.yaml"}}), "utf-8")
    return stage, Archives(folder / "archives", radiographs)


def ingest(stage: Stage, archives: Archives, tell: Callable[[str], None]) -> Intake:
    """Each hospital runs ``medsynx site ingest`` on its archive, as many at once as there are cores; then every vault is searched.

    Raises:
        MedsynxError: ``site-failed`` with the end of the log when a command broke off.
    """
    intake, began = Intake(), time.monotonic()
    waiting, running = list(stage.sites), set[str]()
    with Supervisor() as hospitals:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                name = waiting.pop(0)
                command = ["site", "ingest", str(archives.folder / name), "--dir", str(stage.sites[name])]
                command += ["--dataset", DATASET, "--json"]
                log = stage.folder / "logs" / f"ingest-{name}.log"
                hospitals.start(name, [sys.executable, "-m", "medsynx", *command], log)
                running.add(name)
            for name in running & set(hospitals.ended()):
                running.remove(name)
                _count(intake, name, hospitals)
            done = sum(1 for site in stage.sites.values() for _ in site.glob("vault/objects/*/*.dcm"))
            tell(f"{done:,} of {archives.files:,} radiographs")
            time.sleep(0.3)
    intake.seconds = round(time.monotonic() - began, 1)
    tell("searching the vaults for what was planted")
    for name, site in stage.sites.items():
        intake.planted += identifiers(archives.radiographs[name])
        intake.left += _left(site, [p for _, p in archives.radiographs[name]])
        intake.blanked += sum(f["changed"] for f in Vault(site).catalogue.files(DATASET, verdict="clean"))
    return intake


def vault_report(stage: Stage) -> Path:
    """The page that the first hospital's privacy officer signs for: what came in, what did not, and what was blanked."""
    return next(iter(stage.sites.values())) / "vault" / "reports" / f"{DATASET}.html"


def _count(intake: Intake, name: str, hospitals: Supervisor) -> None:
    status, log = hospitals.services[name].process.returncode, hospitals.services[name].log
    if status not in (0, 80, 81):
        raise MedsynxError("site-failed", f"{name} could not de-identify its archive", details=hospitals.tail(name))
    said = json.loads(next(line for line in reversed(log.read_text("utf-8").splitlines()) if line.startswith("{")))
    intake.clean += said["clean"]
    intake.quarantined += said["quarantined"]
    intake.failed += said["failed"]
    for reason, files_held in said["reasons"].items():
        intake.reasons[reason] = intake.reasons.get(reason, 0) + files_held


def _left(site: Path, patients: list[Patient]) -> int:
    """Identifiers in a vault: of its own patient in a radiograph, of anybody in every other file (table, reports, catalogue)."""
    key, vault = SiteKey(SiteFolder(site).key()), Vault(site)
    known = {key.pseudonym("", p.number): p for p in patients}
    rows = [f for f in vault.catalogue.files(DATASET, verdict="clean") if f["kind"] == "dicom"]
    radiographs = {vault.root / f["output"]: known[f["patient"]] for f in rows}
    others = [p for p in vault.root.rglob("*") if p.is_file() and p not in radiographs]
    rest = b"\n".join(p.read_bytes() for p in others).lower()
    return identifiers(radiographs.items()) + sum(p.identifiers_in(rest) for p in known.values())


def look(archive: Path, study: Study, picture: Path) -> int:
    """Open every DICOM file of the researcher's ZIP and draw the first of each class as one PNG.

    Returns:
        Number of files; each says (0008,001C) Synthetic Data = YES.

    Raises:
        MedsynxError: ``reply-invalid`` for a file that does not.
    """
    import numpy as np
    from pydicom import dcmread

    assert study.image is not None
    shown: dict[str, list[Any]] = {name: [] for name in study.image.classes}
    count = 0
    with zipfile.ZipFile(archive) as held:
        for name in (n for n in held.namelist() if n.endswith(".dcm")):
            ds = dcmread(io.BytesIO(held.read(name)))
            if ds.get("SyntheticData") != "YES":
                raise MedsynxError("reply-invalid", f"{name} does not say that it is synthetic")
            count += 1
            whole = 2**ds.BitsStored - 1
            shown[str(ds.SeriesDescription).removeprefix("SYNTHETIC ")].append(np.round(ds.pixel_array * (255 / whole)))
    _grid(shown, study).save(picture)
    return count


def _grid(shown: dict[str, list[Any]], study: Study) -> Image:
    """A block of images a class under the class's name."""
    from PIL import Image, ImageDraw, ImageFont

    assert study.image is not None
    height, width, gap, title = *(ENLARGED * s for s in study.image.shape[:2]), 4, 34
    block = title + LINES * (height + gap)
    out = Image.new("L", (COLUMNS * (width + gap) + gap, len(shown) * block + gap), 255)
    draw, font = ImageDraw.Draw(out), ImageFont.load_default(18)
    for k, (name, images) in enumerate(shown.items()):
        about = f"{name}: synthetic, {study.family.name}, epsilon {study.privacy.epsilon:g}"
        draw.text((gap, k * block + 8), about, fill=0, font=font)
        for i, pixels in enumerate(images[: COLUMNS * LINES]):
            tile = Image.fromarray(pixels.astype("uint8")).resize((width, height), Image.Resampling.BICUBIC)
            at = gap + i % COLUMNS * (width + gap), k * block + title + i // COLUMNS * (height + gap)
            out.paste(tile, at)
    return out
