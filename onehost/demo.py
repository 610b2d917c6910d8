"""``medsynx demo``: four hospitals, a coordinator, a server and a researcher on one machine, each in processes of its own.

A real table goes through the deployed runtime (SuperLink and SuperNodes over TLS, site executors, the REST server) and ends as a released generator,
a download through the API and a report. What hospitals of radiographs do differently is in :mod:`onehost.image_demo`.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from evaluation.programme import priced_plan
from medsynx.bundle import new_key
from medsynx.errors import MedsynxError
from medsynx.generators import families_of
from medsynx.keys import write_secret
from medsynx.processes import Supervisor, free_port
from medsynx.study import Study, parse_study
from onehost.federation import LocalFederation
from onehost.hospitals import deal_flchain, introduce
from onehost.researcher import Client
from site_agent.policy import Dataset, Limits, SiteFolder, SitePolicy
from strategies.coordinator import CoordinatorFolder
from strategies.runtime import Tls, answers
from strategies.service import START_SECONDS

ADMIN, RESEARCHER = "admin@demo.example", "researcher@demo.example"
ROWS = 1000


@dataclass
class Stage:
    """Everything the demo puts in its folder."""

    folder: Path
    study: Study
    sites: dict[str, Path]
    coordinator: Path
    server: Path
    password_file: Path
    patients: int


def make_anew(folder: Path) -> None:
    """An empty folder of the demo's. Raises ``file-exists`` for one that is something else's."""
    if folder.exists():
        if not (folder / "demo.json").exists() and any(folder.iterdir()):
            raise MedsynxError("file-exists", f"{folder} exists and is not a demo's folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "demo.json").write_text("{}")


def read_study(file: str, family: str | None) -> Study:
    """A study that this package ships, with another family where one is named."""
    study = parse_study(yaml.safe_load(files("onehost").joinpath(file).read_text("utf-8")))
    return study.with_family(family) if family else study


def set_up(folder: Path, family: str | None) -> Stage:
    """Deal the table to four hospitals that approve the study. The folder is made anew."""
    make_anew(folder)
    study = read_study("demo-study.yaml", family)
    tables = deal_flchain(folder / "tables")
    patients = sum(max(0, sum(1 for _ in table.open("rb")) - 1) for table in tables.values())
    return enrol(folder, study, "flchain", {n: Dataset(path=t.resolve()) for n, t in tables.items()}, patients)


def enrol(
    folder: Path, study: Study, dataset: str, data: Mapping[str, Dataset], patients: int, *, minimum: int = 100
) -> Stage:
    """Set up a site for each hospital's data, which approves the study, a coordinator and a server folder.

    Args:
        dataset: the name under which each site registers its data.
        data: hospital -> where they are.
        minimum: the fewest patients a site answers for.
    """
    limits = Limits(
        epsilon_per_study=study.privacy.epsilon,
        epsilon_lifetime=study.privacy.epsilon,
        families=families_of(study.family),
        trust=(study.privacy.trust,),
        minimum_patients=minimum,
    )
    sites = {}
    for name, where in data.items():
        SiteFolder.create(folder / "sites" / name, SitePolicy(site=name, datasets={dataset: where}, limits=limits))
        sites[name] = folder / "sites" / name
    introduce(sites)
    for site in sites.values():
        SiteFolder(site).approve(study, dataset)
    coordinator = folder / "coordinator"
    CoordinatorFolder(coordinator).add_study(study)
    new_key(coordinator / "signing.pem")
    password_file = folder / "password"
    write_secret(password_file, secrets.token_urlsafe(12).encode())
    return Stage(folder, study, sites, coordinator, folder / "server", password_file, patients)


def start_server(stage: Stage, supervisor: Supervisor, tls: Tls) -> str:
    """Initialise and start the REST server and tell the coordinator where it is. Returns its URL once it answers.

    Raises:
        MedsynxError: ``federation-unreachable`` with the end of its log.
    """
    base, password = ["--dir", str(stage.server)], ["--password-file", str(stage.password_file)]
    _medsynx("server", "init", *base, "--email", ADMIN, *password)
    _medsynx("server", "user", "add", *base, "--email", RESEARCHER, "--role", "researcher", *password)
    _medsynx("server", "trust", *base, str(stage.coordinator / "signing.pem.pub"))
    token = _medsynx("server", "token", "create", *base, "--name", "demo-coordinator").split()[-1]
    port = free_port()
    url = f"https://localhost:{port}"
    serve = ["server", "serve", *base, "--port", str(port), "--tls-cert", str(tls.cert), "--tls-key", str(tls.key)]
    supervisor.start("server", [sys.executable, "-m", "medsynx", *serve], stage.folder / "logs" / "server.log")
    write_secret(
        stage.coordinator / "registry.json", json.dumps({"url": url, "token": token, "ca": str(tls.ca)}).encode()
    )
    until = time.monotonic() + START_SECONDS
    while not answers(f"{url}/health", tls.ca):
        if supervisor.ended() or time.monotonic() > until:
            raise MedsynxError("federation-unreachable", "the server did not start", details=supervisor.tail("server"))
        time.sleep(0.2)
    return url


def conduct(stage: Stage, federation: LocalFederation, watch: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Start the run and follow it to its end. Raises what the run's own result says when it failed."""
    name, folder = f"demo-{secrets.token_hex(3)}", CoordinatorFolder(stage.coordinator)
    exchanges = (
        len(priced_plan(stage.study).steps) + 2
    )  # and one deadline to find the quorum, one for report and bundle
    until = time.monotonic() + stage.study.rounds.deadline_seconds * exchanges
    federation.start(stage.study.digest, name)
    while (result := folder.result(name)) is None:
        if progress := folder.progress(name):
            watch(progress)
        if time.monotonic() > until:
            raise MedsynxError("quorum-lost", "the run did not end within its deadlines")
        federation.check()
        time.sleep(0.3)
    if result["status"] != "finished":
        raise MedsynxError(result["code"], result["message"], hint=f"Look at the logs in {federation.folder / 'logs'}.")
    return result


def release(stage: Stage, url: str, ca: Path, generator: str) -> None:
    """What the coordinator does with a finished run."""
    with Client(url, ca) as coordinator:
        coordinator.sign_in(ADMIN, stage.password_file.read_text())
        coordinator.release(generator)


def download(stage: Stage, url: str, ca: Path, generator: str, **orders: tuple[int, Path]) -> Path:
    """What a researcher does: takes synthetic data, and the report.

    Args:
        orders: format -> how many rows or images, and the file for them.

    Returns:
        Path of the report.
    """
    report = stage.folder / "report.html"
    with Client(url, ca) as researcher:
        researcher.sign_in(RESEARCHER, stage.password_file.read_text())
        for form, (rows, target) in orders.items():
            researcher.samples(generator, rows, target, form)
        researcher.report(generator, report)
    return report


def _medsynx(*arguments: str) -> str:
    """One command of ours, as its user would run it; its output."""
    done = subprocess.run([sys.executable, "-m", "medsynx", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MedsynxError(
            "install-incomplete", f"`medsynx {' '.join(arguments[:2])}` failed", details=done.stderr.splitlines()[-5:]
        )
    return done.stdout
