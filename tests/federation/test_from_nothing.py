"""From nothing to a released generator: hospitals invited, enrolled, one renewed, one refusing, a masked study, and books that agree."""

from __future__ import annotations

import json
from contextlib import ExitStack

import httpx
import pytest
import yaml

from evaluation.programme import priced_plan
from medsynx.bundle import new_key, read_bundle
from medsynx.processes import Supervisor
from medsynx.study import parse_study
from site_agent.audit import Audit
from site_agent.cli import app as site_app
from site_agent.ledger import Ledger
from site_agent.policy import Dataset, Limits, SitePolicy
from strategies.coordinator import CoordinatorFolder
from tests.conftest import RAW_STUDY, small_table
from tests.federation.test_membership import Desk, command, until

pytestmark = [pytest.mark.federation, pytest.mark.slow, pytest.mark.timeout(600)]
SITES = ("east", "north", "south", "west")
RAW = {
    **RAW_STUDY,
    "privacy": {**RAW_STUDY["privacy"], "trust": "secure-sum"},
    "rounds": {"quorum": 3, "deadline_seconds": 60},
    "evaluation": {"federated": False},
}


def test_from_nothing_to_a_released_generator(tmp_path):
    study = parse_study(RAW)
    manifest = tmp_path / "study.yaml"
    manifest.write_text(yaml.safe_dump(RAW, sort_keys=False))
    with Supervisor() as supervisor, ExitStack() as agents:
        desk = Desk(tmp_path, supervisor)
        coordinator = CoordinatorFolder(tmp_path / "coordinator")
        coordinator.add_study(study)
        new_key(coordinator.path / "signing.pem")
        desk.server("trust", coordinator.path / "signing.pem.pub")
        limits = Limits(epsilon_per_study=2, minimum_patients=50, trust=("secure-sum",))
        for number, name in enumerate(SITES):
            table = tmp_path / f"{name}.csv"
            small_table(300, number).to_csv(table, index=False)
            desk.enrol(name, SitePolicy(site=name, datasets={"table": Dataset(path=table)}, limits=limits))
            agents.enter_context(desk.agent(name))
        desk.admitted(*SITES)
        federation = desk.federation
        until(lambda: set(desk.roster().values()) <= federation.control.online(), 120, federation)
        command(site_app, "rotate", "--yes", "--dir", tmp_path / "west")  # its agent takes the new key up
        lines = [json.loads(command(site_app, "identity", "--dir", tmp_path / name)) for name in SITES]
        roster = tmp_path / "roster.json"
        roster.write_text(json.dumps({site: key for line in lines for site, key in line.items()}))
        for name in SITES:
            command(site_app, "roster", roster, "--yes", "--dir", tmp_path / name)
            decide = ["refuse", manifest, "--reason", "no vote"] if name == "south" else ["approve", manifest, "--yes"]
            command(site_app, *decide, "--dir", tmp_path / name)
        until(
            lambda: len(desk.roster()) == 4 and set(desk.roster().values()) <= federation.control.online(),
            60,
            federation,
        )

        federation.start(study.digest, "first")
        until(lambda: coordinator.result("first") is not None, 240, federation)
        result = coordinator.result("first")
        assert result["status"] == "finished" and result["sites"] == ["east", "north", "west"], result
        assert result["missing"] == {"south": "study-not-approved"}
        assert read_bundle(coordinator.run("first") / "small.medsynx.zip").private
        for name in SITES:
            kinds = [e["kind"] for e in Ledger(tmp_path / name / "ledger.sqlite").chain.entries() if e["run"]]
            log = [e for e in Audit(tmp_path / name / "audit.sqlite").chain.entries() if e["run"] == "first"]
            left = [e for e in log if e["kind"] == "released"]
            if name == "south":
                assert kinds == [] and left == [] and {e["code"] for e in log} == {"study-not-approved"}
            else:
                assert kinds == ["reserve", "settle"] * len(priced_plan(study).steps)
                assert sum(e["arrays"]["sum"]["bytes"] for e in left) == result["bytes_per_site"]

        password = tmp_path / "password"
        password.write_text("correct horse battery")
        desk.server("user", "add", "--email", "c@h.example", "--role", "coordinator", "--password-file", password)
        url = json.loads((coordinator.path / "registry.json").read_text())["url"]
        with httpx.Client(base_url=url) as client:
            form = {"username": "c@h.example", "password": password.read_text()}
            token = client.post("/auth/token", data=form).json()["access_token"]
            client.headers["Authorization"] = f"Bearer {token}"
            generator = f"/generators/{result['generator_id']}"
            assert client.post(f"{generator}/release").json()["status"] == "released"
            rows = client.post(f"{generator}/samples", json={"rows": 50, "seed": 1})
            assert rows.status_code == 200 and len(rows.text.splitlines()) == 51
