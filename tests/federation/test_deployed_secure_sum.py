"""Masked sums on the deployed runtime while a hospital dies: kill -9 of its SuperNode and executor between any two exchanges."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from medsynx.bundle import new_key, read_bundle
from medsynx.processes import Supervisor
from medsynx.study import parse_study
from onehost.federation import LocalFederation
from site_agent.audit import Audit
from site_agent.policy import SiteFolder
from site_agent.service import SiteService
from strategies.coordinator import CoordinatorFolder
from strategies.federation import Answer
from strategies.in_process import InProcessFederation
from strategies.rounds import Run
from tests.conftest import RAW_STUDY, small_table
from tests.federation.test_deployed import finish
from tests.helpers import add_dataset, masking_sites

pytestmark = [pytest.mark.federation, pytest.mark.slow, pytest.mark.timeout(600)]
SITES = ("east", "north", "south", "west")
RAW = {
    **RAW_STUDY,
    "privacy": {**RAW_STUDY["privacy"], "trust": "secure-sum"},
    "rounds": {"quorum": 3, "deadline_seconds": 40},
    "evaluation": {"federated": False},
}
STUDIES = {name: parse_study({**RAW, "name": name}) for name in ("before", "after")}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """Four hospitals that know each other, noise off so that totals can be compared to the digit; a data set for each run."""
    root = tmp_path_factory.mktemp("masked")
    sites = {n: s.path for n, s in masking_sites(root / "sites", STUDIES["before"], SITES, noise=False).items()}
    for number, folder in enumerate(sites.values()):
        add_dataset(SiteFolder(folder), "spare", small_table(300, 100 + number))
        SiteFolder(folder).approve(STUDIES["after"], "spare")
    coordinator = CoordinatorFolder(root / "coordinator")
    for study in STUDIES.values():
        coordinator.add_study(study)
    new_key(coordinator.path / "signing.pem")
    with Supervisor() as supervisor:
        federation = LocalFederation(supervisor, root / "federation", sites, coordinator.path)
        federation.up()
        yield federation, coordinator, sites


class Replayed(InProcessFederation):
    """Only those answer in a step who answered in the deployed run."""

    def __init__(self, handlers, answered):
        super().__init__(handlers)
        self.answered = answered

    def _one(self, request, site, deadline_seconds):
        if site not in self.answered[request.step]:
            return Answer(site, None, "offline")
        return super()._one(request, site, deadline_seconds)


# West dies after it shared: the others give up the key of its masks. Or after its vector came: it is in the total, and they give up its own mask.
@pytest.mark.parametrize(
    ("name", "watched", "exchange", "counted"), [("before", "west", "share", False), ("after", "east", "confirm", True)]
)
def test_a_hospital_that_dies_in_a_masked_sum(deployed, tmp_path, name, watched, exchange, counted):
    federation, coordinator, sites = deployed
    study, killed = STUDIES[name], []
    until = time.monotonic() + 150
    while not federation.control.online() >= set(federation.nodes.values()):
        assert time.monotonic() < until, "a hospital does not come back"
        federation.check()
        time.sleep(0.5)
    for site, folder in sites.items():
        shutil.copytree(folder, tmp_path / site, ignore=shutil.ignore_patterns("*.sqlite", "witness", "runs"))
        SiteFolder(tmp_path / site).approve(study, {"before": "table", "after": "spare"}[name])  # in its new audit log
    begun = {n: len(Audit(f / "audit.sqlite").chain.entries()) for n, f in sites.items()}

    def kill():
        entries = Audit(sites[watched] / "audit.sqlite").chain.entries()[begun[watched] :]
        if not killed and any(e["kind"] == "message" and e["exchange"] == exchange for e in entries):
            for service in ("executor west", "supernode west"):
                killed.append(federation.supervisor.pids()[service])
                os.kill(killed[-1], signal.SIGKILL)

    result = finish(deployed, study, f"run-{name}", seconds=420, meanwhile=kill)
    assert len(killed) == 2 and result["status"] == "finished", result
    rounds = json.loads((coordinator.run(f"run-{name}") / "evaluation.json").read_text())["rounds"]
    answered = {r["step"]: r["answered"] for r in rounds}
    assert ("west" in answered["tables"]) == counted and set(answered["tables"]) >= {"east", "north", "south"}
    services = {n: SiteService(SiteFolder(tmp_path / n), simulated=True).answer for n in sites}
    here = Run(study, Replayed(services, answered), "here", masked=False).conduct()
    bundle = read_bundle(coordinator.run(f"run-{name}") / f"{name}.medsynx.zip")
    with (
        np.load(io.BytesIO(bundle.files["artefact/tables.npz"])) as a,
        np.load(io.BytesIO(here.artefact.files["tables.npz"])) as b,
    ):
        assert a.files == b.files and all((a[n] == b[n]).all() for n in a.files)
