"""The deployed runtime on loopback: real SuperLink, gate, SuperNodes with keys of their own, site executors, TLS."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from evaluation.programme import priced_plan
from medsynx.bundle import new_key, read_bundle
from medsynx.flower_records import app_folder
from medsynx.keys import make_node_key, make_secret
from medsynx.processes import Supervisor, free_port
from medsynx.study import parse_study
from onehost.federation import LocalFederation
from onehost.hospitals import introduce
from site_agent.audit import Audit
from site_agent.ledger import Ledger
from site_agent.policy import SiteFolder
from site_agent.service import SiteService
from strategies.coordinator import CoordinatorFolder
from strategies.in_process import InProcessFederation
from strategies.rounds import Run
from tests.conftest import RAW_STUDY, small_table
from tests.helpers import add_dataset, make_site

pytestmark = [pytest.mark.federation, pytest.mark.timeout(900)]
SITES = ("east", "north", "west")
RAW = {**RAW_STUDY, "rounds": {"quorum": 2, "deadline_seconds": 120}}
STUDY, NOISELESS = parse_study(RAW), parse_study({**RAW, "name": "noiseless"})
MASKED = parse_study(
    {
        **RAW,
        "name": "masked",
        "privacy": {**RAW["privacy"], "trust": "secure-sum"},
        "rounds": {"quorum": 3, "deadline_seconds": 120},
        "evaluation": {"federated": False},
    }
)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """Three hospitals, all processes up. Each run of a test uses a study of its own, since budgets are for one."""
    root = tmp_path_factory.mktemp("deployed")
    sites = {name: root / "sites" / name for name in SITES}
    for number, (_, folder) in enumerate(sites.items()):
        limits = {"epsilon_lifetime": 100, "trust": ("local", "secure-sum")}
        site = make_site(folder, STUDY, small_table(300, number), name=folder.name, **limits)
        # what leaves without noise spoils its data set for good, so that run has one of its own
        add_dataset(site, "spare", small_table(300, 100 + number))
        site.approve(NOISELESS, "spare")
    introduce(sites)
    for folder in sites.values():
        SiteFolder(folder).approve(MASKED, "spare")
    coordinator = CoordinatorFolder(root / "coordinator")
    for study in (STUDY, NOISELESS, MASKED):
        coordinator.add_study(study)
    new_key(coordinator.path / "signing.pem")
    with Supervisor() as supervisor:
        federation = LocalFederation(supervisor, root / "federation", sites, coordinator.path)
        federation.up(seconds=300)
        yield federation, coordinator, sites


def finish(deployed, study, run, seconds=400, app=None, meanwhile=lambda: None):
    """Start a run and return its result once it has one."""
    federation, coordinator, _ = deployed
    federation.control.start(study.digest, run, app)
    until = time.monotonic() + seconds
    while (result := coordinator.result(run)) is None:
        assert time.monotonic() < until, "the run hangs"
        federation.check()
        meanwhile()
        time.sleep(0.2)
    return result


def noise(deployed, on: bool) -> None:
    for folder in deployed[2].values():
        text = (folder / "site.yaml").read_text()
        wanted, other = (f"testing_without_noise: {'false' if v else 'true'}" for v in (on, not on))
        (folder / "site.yaml").write_text(text.replace(other, wanted))


@pytest.mark.parametrize("study", [NOISELESS, MASKED], ids=["plain", "masked"])
def test_with_noise_off_it_gives_the_same_aggregate_as_one_process(deployed, tmp_path, study):
    """Also when sums are masked: the masks cancel to the last digit."""
    _, coordinator, sites = deployed
    run = f"same-{study.name}"
    for name, folder in sites.items():  # the same hospitals, with ledgers of their own
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("*.sqlite", "witness", "runs"))
        SiteFolder(tmp_path / name).approve(study, "spare")  # an approval is in the audit log or it is none
    noise(deployed, False)
    try:
        result = finish(deployed, study, run)
    finally:
        noise(deployed, True)
    assert result["status"] == "finished" and result["missing"] == {}
    for name in sites:
        text = (tmp_path / name / "site.yaml").read_text()
        (tmp_path / name / "site.yaml").write_text(
            text.replace("testing_without_noise: false", "testing_without_noise: true")
        )
    services = {n: SiteService(SiteFolder(tmp_path / n), simulated=True).answer for n in sites}
    here = Run(study, InProcessFederation(services), "here", masked=False).conduct()
    bundle = read_bundle(coordinator.run(run) / f"{study.name}.medsynx.zip")
    with (
        np.load(io.BytesIO(bundle.files["artefact/tables.npz"])) as a,
        np.load(io.BytesIO(here.artefact.files["tables.npz"])) as b,
    ):
        assert a.files == b.files and all((a[n] == b[n]).all() for n in a.files)
    assert bundle.private is False and here.private is False, "a run without noise says so"


def test_a_private_run_ends_in_a_signed_bundle_and_full_books(deployed):
    _, coordinator, sites = deployed
    result = finish(deployed, STUDY, "private")
    assert result["status"] == "finished" and result["sites"] == list(SITES)
    assert 1.9 < result["epsilon"] <= 2.0 and result["epsilon_coordinator"] == result["epsilon"]
    assert read_bundle(coordinator.run("private") / "small.medsynx.zip").private
    for folder in sites.values():
        mine = [e for e in Ledger(folder / "ledger.sqlite").chain.entries() if e["run"] == "private"]
        assert [e["kind"] for e in mine] == ["reserve", "settle"] * len(priced_plan(STUDY).steps)
        left = [e for e in Audit(folder / "audit.sqlite").chain.entries() if e["run"] == "private"]
        assert sum(e["arrays"]["sum"]["bytes"] for e in left) == result["bytes_per_site"]


def test_a_study_nobody_approved_is_refused_by_name(deployed):
    other = parse_study({**RAW, "name": "other"})
    deployed[1].add_study(other)
    result = finish(deployed, other, "unapproved")
    assert result["status"] == "failed" and result["code"] == "quorum-lost"
    assert all(f"{s} (study-not-approved)" in result["message"] for s in SITES)


def test_code_that_arrives_is_never_run(deployed, tmp_path):
    shutil.copytree(app_folder(), tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
    marker = tmp_path / "evil"
    client = tmp_path / "app" / "medsynx_app" / "client_app.py"
    client.write_text(client.read_text() + f"\nopen({str(marker)!r}, 'w').write('ran')\n")
    result = finish(deployed, STUDY, "evil", app=tmp_path / "app")
    assert result["code"] == "quorum-lost" and "site-failed" in result["message"] and not marker.exists()
    for folder in deployed[2].values():
        assert not [e for e in Ledger(folder / "ledger.sqlite").chain.entries() if e["run"] == "evil"]


def test_the_gate_serves_the_fleet_and_nothing_else(deployed):
    federation = deployed[0]
    context = ssl.create_default_context(cafile=str(federation.tls.ca))

    def status(port, path, data=b""):
        request = urllib.request.Request(
            f"https://127.0.0.1:{port}{path}", data=data, method="POST" if data is not None else "GET"
        )
        try:
            return urllib.request.urlopen(request, context=context, timeout=10).status
        except urllib.error.HTTPError as error:
            return error.code

    forbidden = [
        "/v1/control/start-run",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/docs",
        "/openapi.json",
        "/v1/fleet/../control/list-runs",
    ]
    for path in forbidden:
        assert status(federation.gate_port, path) == 403, path
    assert status(federation.gate_port, "/health", None) == 200
    assert status(federation.gate_port, "/v1/fleet/activate-node") not in (200, 403), (
        "passed on, and refused for want of a key"
    )
    assert status(federation.private_port, "/v1/control/list-runs") != 403, "the same path exists behind the gate"
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"https://127.0.0.1:{federation.gate_port}/health", timeout=10)


def test_a_node_nobody_registered_stays_out(deployed, tmp_path):
    federation = deployed[0]
    before = federation.control.online()
    make_node_key(tmp_path / "stranger")
    command = federation.supervisor.services["supernode east"].command.copy()
    command[command.index("--auth-supernode-private-key") + 1] = str(tmp_path / "stranger")
    command[command.index("--port") + 1] = str(free_port())
    command[command.index("--superexec-auth-secret-file") + 1] = str(make_secret(tmp_path / "secret"))
    env = {**os.environ, "FLWR_HOME": str(tmp_path)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            code = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
    assert code != 0 and federation.control.online() == before


def test_kill_9_of_a_supernode_in_a_run_ends_within_the_deadlines(deployed):
    """The others carry the quorum; the run names who was missing; the site's executor survives and the node comes back."""
    federation, coordinator, _ = deployed
    study = parse_study({**RAW, "name": "killed", "rounds": {"quorum": 2, "deadline_seconds": 30}})
    coordinator.add_study(study)
    for folder in deployed[2].values():
        SiteFolder(folder).approve(study, "table")
    killed = []

    def kill_once():
        progress = coordinator.progress("killed")
        if not killed and progress and progress["status"] == "running":
            killed.append(federation.supervisor.pids()["supernode west"])
            os.kill(killed[0], signal.SIGKILL)
            turn.close()

    with (deployed[2]["west"] / "executor.lock").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # its task waits for its turn, as behind another one, until then
        result = finish(deployed, study, "killed", seconds=4 * 30 + 60, meanwhile=kill_once)
    assert killed
    if result["status"] == "finished":
        # late, and set aside after two of these, while Flower still counts it as online; offline afterwards
        assert set(result["missing"].items()) <= {("west", why) for why in ("late", "set-aside", "offline")}
        assert {"east", "north"} <= set(result["sites"])
    else:
        assert result["code"] == "quorum-lost" and "west" in result["message"]
    assert "executor west" in federation.supervisor.pids()
