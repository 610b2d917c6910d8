"""From nothing to a released generator, with the commands of the README: hospitals are invited, enrol, compare keys and decide; then things go wrong.

Four hospitals with agents of their own. One refuses the study; the agent of another is killed in the middle of a masked sum that needs it, and comes
back; the coordinator's service is killed with everything it started. systemd's part, starting killed services again, is the test's supervisor's.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from evaluation.programme import priced_plan
from medsynx.bundle import read_bundle
from medsynx.processes import Supervisor, free_port
from medsynx.study import parse_study
from onehost.certificates import make_tls
from onehost.researcher import Client
from site_agent.audit import Audit
from site_agent.ledger import Ledger
from strategies.coordinator import CoordinatorFolder
from tests.conftest import RAW_STUDY, small_table
from tests.federation.field import kill

pytestmark = [pytest.mark.federation, pytest.mark.slow, pytest.mark.timeout(900)]
README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
LINES = [line for block in re.findall(r"```(?:ba)?sh\n(.*?)```", README, re.S) for line in block.splitlines()]
EAST, NORTH, SOUTH, WEST = SITES = ("east", "north", "south", "west")
STUDY = parse_study(
    {
        **RAW_STUDY,
        "privacy": {**RAW_STUDY["privacy"], "epsilon": 1.0, "trust": "secure-sum"},
        "rounds": {"quorum": 3, "deadline_seconds": 150},
    }
)
EXCHANGES = ("advert", "share", "confirm", "unmask")


class Machine:
    """A folder in which somebody types the README's commands.

    Args:
        words: what is written differently here than in the README.
    """

    def __init__(self, folder: Path, supervisor: Supervisor, words: dict[str, str]) -> None:
        self.folder, self.supervisor, self.words = folder, supervisor, words
        folder.mkdir(exist_ok=True)

    def line(self, begin: str) -> list[str]:
        """The README's command that begins so, in this machine's words."""
        (line,) = [x for x in LINES if x.startswith(f"medsynx {begin} ")]
        words = shlex.split(line, comments=True)[1:]
        return [sys.executable, "-m", "medsynx", *(self.words.get(w, w) for w in words)]

    def type(self, begin: str, *more: str, answer: str = "", status: int = 0) -> str:
        """Run one to its end."""
        command = [*self.line(begin), *more]
        done = subprocess.run(command, cwd=self.folder, input=answer, capture_output=True, text=True, timeout=200)
        assert done.returncode == status, (command, done.stdout, done.stderr)
        return done.stdout

    def serve(self, begin: str, *more: str, pause: float = 1.0) -> None:
        """Start one that stays, again and again: systemd's part."""
        log = self.folder / f"{begin.replace(' ', '-')}.log"
        command = ["env", "-C", str(self.folder), *self.line(begin), *more]
        self.supervisor.start(f"{begin} {self.folder.name}", command, log, restart=True, pause=pause)

    def pid(self, begin: str) -> int:
        return self.supervisor.pids()[f"{begin} {self.folder.name}"]


def until(what, seconds, supervisor):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, {n: supervisor.tail(n, 6) for n in supervisor.services}
        supervisor.tend()
        time.sleep(0.05)
    return found


def test_from_nothing_to_a_released_generator(tmp_path):
    with Supervisor() as supervisor:
        told, bundle = _story(tmp_path, supervisor)
    _books_agree(tmp_path, told, bundle)


def _story(root: Path, supervisor: Supervisor) -> tuple[dict, Path]:
    # The study office: its server, its coordinator, one certificate for both.
    tls, gate, port = make_tls(root / "tls"), free_port(), free_port()
    url, api = f"https://localhost:{gate}", f"https://localhost:{port}"
    words = {"https://fed.example:8443": url, "https://localhost:8400": api}
    words |= {"ca.pem": str(tls.ca), "server.pem": str(tls.cert), "server.key": str(tls.key)}
    office = Machine(root / "office", supervisor, words)
    password = office.type("server init").split()[-1]
    (office.folder / "token").write_text(office.type("server token create"))
    office.type("server federation")
    office.serve("server serve", "--port", str(port))
    until(lambda: "MedSynX server on" in (office.folder / "server-serve.log").read_text(), 60, supervisor)
    until(lambda: _answers(api, tls.ca), 60, supervisor)
    office.type("coordinator connect")
    office.serve("coordinator serve", "--host", "127.0.0.1", "--port", str(gate))
    until(lambda: "ready" in (office.folder / "coordinator-serve.log").read_text(), 90, supervisor)
    office.type("server trust")

    # Four hospitals join, each with a token and a fingerprint, and an agent of its own.
    hospitals = {}
    for number, name in enumerate(SITES):
        invite = json.loads(
            Machine(office.folder, supervisor, {**words, "north": name}).type("server invite create", "--json")
        )
        own = {"north": name, "https://fed.example:8443": url, "5c3e...": invite["ca_fingerprint"]}
        site = hospitals[name] = Machine(root / name, supervisor, own)
        small_table(300, number).to_csv(site.folder / "north.csv", index=False)
        (site.folder / "token").write_text(invite["token"])
        site.type("site init")
        site.type("site preflight")
        assert f"site {name} is enrolled" in site.type("site enrol")
        site.serve("site run")
    west = hospitals[WEST]
    west.type("site rotate", "--yes")  # its agent takes the new key up
    marks = {s: json.loads(_typed(m, "identity")) for s, m in hospitals.items()}

    # They compare keys, look at the study, play it, and decide.
    for name, site in hospitals.items():
        policy = yaml.safe_load((site.folder / "site" / "site.yaml").read_text())
        policy["limits"]["trust"] = ["secure-sum"]
        (site.folder / "site" / "site.yaml").write_text(yaml.safe_dump(policy))
        shown = site.type("site roster", answer="y\n")
        assert all(other in shown for other in SITES)
        assert json.loads((site.folder / "site" / "roster.json").read_text()) == {s: m[s] for s, m in marks.items()}
        (site.folder / "study.yaml").write_text(yaml.safe_dump(STUDY.model_dump(mode="json"), sort_keys=False))
        site.type("site check")
        if name == SOUTH:
            _typed(site, "refuse", "study.yaml", "--reason", "no vote of the ethics board", "--by", "Dr. Grey")
            continue
        site.type("site rehearse")
        assert "pending" in site.type("site studies")
        assert "approved" in site.type("site approve")
    for site in hospitals.values():
        until(lambda s=site: _healthy(s), 60, supervisor)

    # The run: north's agent dies within the first masked sum, the coordinator within the second.
    (office.folder / "study.yaml").write_text(yaml.safe_dump(STUDY.model_dump(mode="json"), sort_keys=False))
    nodes = CoordinatorFolder(office.folder / "coordinator")
    until(lambda: json.loads(office.type("coordinator sites", "--json")) == dict.fromkeys(SITES, True), 150, supervisor)
    office.type("coordinator run", "--name", "first", "--detach")
    first, second = [s.step.name for s in priced_plan(STUDY).steps][:2]
    until(lambda: (first, "advert") in _said(hospitals[NORTH]), 180, supervisor)
    kill(hospitals[NORTH].pid("site run"))
    until(lambda: (second, "advert") in _said(west), 300, supervisor)
    kill(office.pid("coordinator serve"))
    until(lambda: nodes.result("first"), 400, supervisor)
    (row,) = json.loads(office.type("coordinator runs", "--json"))
    assert (row["status"], len(row["starts"])) == ("finished", 2), row
    assert supervisor.services["site run north"].restarts == 1
    assert supervisor.services["coordinator serve office"].restarts == 1

    # The office releases it and a researcher takes rows.
    result = nodes.result("first")
    with Client(api, tls.ca) as client:
        client.sign_in("it@hospital.example", password)
        client.release(result["generator_id"])
        client.samples(result["generator_id"], 50, root / "rows.csv", "csv")
    assert len((root / "rows.csv").read_text().splitlines()) == 51
    for site in hospitals.values():
        site.type("site ledger")
        site.type("site audit")
        site.type("site backup")
    return result, nodes.run("first") / f"{STUDY.name}.medsynx.zip"


def _books_agree(root: Path, result: dict, file: Path) -> None:
    """What the bundle says of each round is what each hospital's ledger and audit log say."""
    bundle, steps = read_bundle(file), [s.step.name for s in priced_plan(STUDY).steps]
    rounds = json.loads((root / "office" / "coordinator" / "runs" / "first" / "evaluation.json").read_text())["rounds"]
    assert bundle.private and bundle.study.digest == STUDY.digest
    assert [r["step"] for r in rounds] == steps and result["sites"] == [EAST, NORTH, WEST]
    assert all(r["answered"] == [EAST, NORTH, WEST] for r in rounds), "north was back before the deadline"
    assert all(r["missing"] == {SOUTH: "study-not-approved"} for r in rounds)
    for name in SITES:
        took_part = [r["step"] for r in rounds if name in r["answered"]]
        ledger = [e for e in Ledger(root / name / "site" / "ledger.sqlite").chain.entries() if e.get("run") == "first"]
        log = [e for e in Audit(root / name / "site" / "audit.sqlite").chain.entries() if e["run"] == "first"]
        left = [e for e in log if e["kind"] == "released"]
        for kind in ("reserve", "settle"):
            assert [e["step"] for e in ledger if e["kind"] == kind] == took_part, (name, kind)
        assert [e["step"] for e in left] == took_part, name
        sizes = {r["step"]: r["bytes_per_site"] for r in rounds}
        assert [sum(a["bytes"] for a in e["arrays"].values()) for e in left] == [sizes[s] for s in took_part]
        if name == SOUTH:
            assert {e["code"] for e in log} == {"study-not-approved"}
        for step in took_part:
            said = [e["exchange"] for e in log if e["kind"] == "message" and e["step"] == step]
            assert list(dict.fromkeys(said)) == list(EXCHANGES), (name, step)
    assert result["epsilon"] == pytest.approx(STUDY.privacy.epsilon, rel=0.02)


def _typed(machine: Machine, *words: str) -> str:
    """A `medsynx site` command that the README names in its text."""
    command = [sys.executable, "-m", "medsynx", "site", *words, "--dir", "site"]
    return subprocess.run(command, cwd=machine.folder, capture_output=True, text=True, check=True).stdout


def _said(machine: Machine) -> set[tuple[str, str]]:
    """Step and exchange of every message this hospital has sent in the run."""
    entries = Audit(machine.folder / "site" / "audit.sqlite").chain.entries()
    return {(e["step"], e["exchange"]) for e in entries if e["kind"] == "message" and e["run"] == "first"}


def _healthy(machine: Machine) -> bool:
    return not subprocess.run(machine.line("site health"), cwd=machine.folder, capture_output=True).returncode


def _answers(url: str, ca: Path) -> bool:
    from strategies.runtime import answers

    return answers(f"{url}/health", ca)
