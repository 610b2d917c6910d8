"""``medsynx demo``: four hospitals, a coordinator, a server and a researcher on one machine, each in processes of its own.

A real table goes through the deployed runtime (SuperLink and SuperNodes over TLS, site executors, the REST server) and ends as a released generator,
a download through the API and a report.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
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


def set_up(folder: Path, family: str | None) -> Stage:
    """Deal the table, set up four sites that approve the study, a coordinator and a server folder. The folder is made anew."""
    if folder.exists():
        if not (folder / "demo.json").exists() and any(folder.iterdir()):
            raise MedsynxError("file-exists", f"{folder} exists and is not a demo's folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "demo.json").write_text("{}")
    study = parse_study(yaml.safe_load(files("onehost").joinpath("demo-study.yaml").read_text("utf-8")))
    if family:
        study = study.with_family(family)
    tables = deal_flchain(folder / "tables")
    limits = Limits(
        epsilon_per_study=study.privacy.epsilon,
        epsilon_lifetime=study.privacy.epsilon,
        families=families_of(study.family),
    )
    sites = {}
    for name, table in tables.items():
        policy = SitePolicy(site=name, datasets={"flchain": Dataset(path=table.resolve())}, limits=limits)
        SiteFolder.create(folder / "sites" / name, policy)
        sites[name] = folder / "sites" / name
    introduce(sites)
    for site in sites.values():
        SiteFolder(site).approve(study, "flchain")
    coordinator = folder / "coordinator"
    CoordinatorFolder(coordinator).add_study(study)
    new_key(coordinator / "signing.pem")
    password_file = folder / "password"
    write_secret(password_file, secrets.token_urlsafe(12).encode())
    patients = sum(max(0, sum(1 for _ in table.open("rb")) - 1) for table in tables.values())
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
    until = time.monotonic() + 30
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


def download(stage: Stage, url: str, ca: Path, generator: str) -> dict[str, Path]:
    """What people do with a finished run: the coordinator releases it, the researcher takes rows and the report."""
    password = stage.password_file.read_text()
    with Client(url, ca) as coordinator:
        coordinator.sign_in(ADMIN, password)
        coordinator.release(generator)
    rows, report = stage.folder / "synthetic.csv", stage.folder / "report.html"
    with Client(url, ca) as researcher:
        researcher.sign_in(RESEARCHER, password)
        researcher.samples(generator, ROWS, rows)
        researcher.report(generator, report)
    return {"rows": rows, "report": report}


def _medsynx(*arguments: str) -> str:
    """One command of ours, as its user would run it; its output."""
    done = subprocess.run([sys.executable, "-m", "medsynx", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MedsynxError(
            "install-incomplete", f"`medsynx {' '.join(arguments[:2])}` failed", details=done.stderr.splitlines()[-5:]
        )
    return done.stdout
