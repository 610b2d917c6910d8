"""More faults on the deployed runtime, each for minutes: kills before, within and after the exchanges, slow and absent sites, masked sums, clocks."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time

import pytest

from medsynx.bundle import read_bundle
from medsynx.processes import Supervisor, free_port
from medsynx.study import parse_study
from onehost.certificates import make_tls
from strategies.control import Control
from strategies.runtime import answers
from tests.conftest import RAW_STUDY
from tests.federation.field import Field, gone, kill, stopped

pytestmark = [pytest.mark.federation, pytest.mark.slow, pytest.mark.timeout(900)]
SITES = ("east", "north", "south", "west")
RAW = {
    **RAW_STUDY,
    "name": "faults",
    "rounds": {"quorum": 3, "deadline_seconds": 60},
    "evaluation": {"federated": False},
}
STUDY = parse_study(RAW)
MASKED = parse_study(
    {
        **RAW,
        "name": "masked",
        "privacy": {**RAW["privacy"], "trust": "secure-sum"},
        "rounds": {"quorum": 3, "deadline_seconds": 60},
    }
)
WHOLE = parse_study({**RAW_STUDY, "name": "whole", "rounds": {"quorum": 3, "deadline_seconds": 40}})


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    with Supervisor() as supervisor:
        yield Field(tmp_path_factory.mktemp("faults"), supervisor, STUDY, dict.fromkeys(SITES, 300), MASKED, WHOLE)


@pytest.mark.parametrize("phase", ["before", "within", "after"])
@pytest.mark.parametrize("victim", ["superlink", "superexec", "serverapp"])
def test_whatever_dies_at_the_coordinator_the_run_ends_and_charges_once(field, victim, phase):
    field.online()
    run = f"{victim}-{phase}"

    def end() -> None:
        kill(field.until(lambda: field.server_app(run)) if victim == "serverapp" else field.pid(victim))

    if phase == "within":
        with field.second_step(run, "west"):
            end()
    elif phase == "before":
        with field.waiting("west"):
            field.ask(run)
            field.until(lambda: field.coordinator.attempts(run))
            end()
    else:
        field.ask(run)
        field.until(lambda: (field.coordinator.progress(run) or {}).get("message") == "report and bundle")
        end()
    result = field.result(run)
    assert result["status"] == "finished" and set(result["sites"]) == set(SITES), result
    field.settled(run)
    if victim != "superlink":
        assert [field.charged(s, run) for s in SITES] == [field.steps()] * 4 and result["missing"] == {}


@pytest.mark.parametrize("exchange", ["advert", "share", "released", "confirm", "unmask"])
def test_a_serverapp_that_is_killed_in_a_masked_sum_loses_no_vector(field, exchange):
    """When west has just answered that exchange: the sum goes on in it, with nobody asked for a second vector."""
    field.online()
    run = f"masked-{exchange}"
    field.ask(run, MASKED)
    what = ("released", None) if exchange == "released" else ("message", exchange)
    field.until(lambda: field.entries("west", run, *what), 120)
    kill(field.server_app(run))
    result = field.result(run)
    assert result["status"] == "finished" and result["missing"] == {} and result["sites"] == list(SITES), result
    assert [field.charged(s, run) for s in SITES] == [field.steps()] * 4
    assert len(field.coordinator.attempts(run)) == 2
    assert read_bundle(field.coordinator.run(run) / "masked.medsynx.zip").private


def test_two_runs_at_once_end_and_neither_pays_for_the_other(field):
    field.online()
    for run in ("one", "two"):
        field.ask(run)
    results = [field.result(run) for run in ("one", "two")]
    assert [r["status"] for r in results] == ["finished"] * 2 and [r["missing"] for r in results] == [{}] * 2
    for site in SITES:
        assert field.charged(site, "one") == field.charged(site, "two") == field.steps()


def test_a_site_that_stops_a_study_is_out_at_once_and_named(field):
    """The privacy officer takes the approval back while the run goes on."""
    field.online()
    approval = field.sites["west"] / "approvals" / f"{STUDY.digest}.json"
    kept = approval.read_text()
    try:
        with field.second_step("withdrawn", "west"):
            approval.unlink()
        result = field.result("withdrawn")
    finally:
        approval.write_text(kept)
    assert result["status"] == "finished" and result["missing"] == {"west": "study-not-approved"}
    assert [r["missing"] for r in field.rounds("withdrawn")] == [{}, {"west": "study-not-approved"}]


def test_a_slow_site_costs_two_deadlines_and_takes_part_in_the_next_run(field):
    """Its executor does not move: two steps wait for it, the next two do not. What it computes afterwards is not used."""
    field.online()
    with stopped(field.pid("executor west")):
        field.ask("slow", WHOLE)
        result = field.result("slow")
        assert result["status"] == "finished", result
    assert [r["missing"] for r in field.rounds("slow")] == [
        {"west": w} for w in ("late", "late", "set-aside", "set-aside")
    ]
    time.sleep(5)
    field.ask("slow-no-more")
    assert field.result("slow-no-more")["sites"] == list(SITES)
    field.settled("slow")


def test_a_site_that_is_away_for_minutes_is_not_waited_for_and_comes_back(field):
    """Its SuperNode is stopped until it counts as offline: runs do without it, at no cost; afterwards it is asked again without anybody's help."""
    field.online()
    node = field.federation.nodes["west"]
    with stopped(field.pid("supernode west")):
        field.until(lambda: node not in field.there(), 150)
        began = time.monotonic()
        field.ask("away")
        result = field.result("away")
        assert result["missing"] == {}, "it was not there when the run began"
        assert result["sites"] == ["east", "north", "south"] and time.monotonic() - began < 150
    field.online("west")
    field.ask("back")
    assert field.result("back")["sites"] == list(SITES)


def test_a_killed_child_of_the_executor_is_spoken_for_at_once(field):
    """Its parent notices, long before the SuperNode misses a heartbeat (60 s), and the site is asked again in the next step."""
    field.online()
    field.idle("west")
    with field.waiting("west"):
        field.ask("orphan")
        field.caught("west", worker=True, seconds=180)
        (child,) = field.children("west")
        kill(child)
        killed = time.monotonic()
    field.until(lambda: "cliques" in field.left("east", "orphan"))
    assert time.monotonic() - killed < 50
    result = field.result("orphan")
    assert result["status"] == "finished" and result["missing"] == {"west": "site-failed"}, result
    assert "west" not in field.rounds("orphan")[0]["answered"] and "west" in field.rounds("orphan")[1]["answered"]
    field.settled("orphan")


@pytest.mark.parametrize("victim", ["supernode", "executor", "child"])
def test_a_site_whose_process_is_killed_within_an_exchange_comes_back(field, victim):
    field.online()
    run = f"{victim}-killed"
    field.idle("west")
    with field.waiting("west"):
        field.ask(run)
        child = field.caught("west", seconds=180)
        kill(child if victim == "child" else field.pid(f"{victim} west"))
    result = field.result(run)
    assert result["status"] == "finished" and {"east", "north", "south"} <= set(result["sites"]), result
    assert set(result["missing"]) <= {"west"}
    field.settled(run)
    field.online()
    field.ask(f"{run}-back")
    assert field.result(f"{run}-back")["sites"] == list(SITES)


def test_without_its_quorum_a_run_is_failed_everywhere_and_names_who_was_missing(field):
    """Two of four sites do not move; three are needed. Never a silent success: result, progress and Flower say so."""
    field.online()
    with stopped(field.pid("executor west"), field.pid("executor south")):
        field.ask("few")
        result = field.result("few")
    assert (result["status"], result["code"]) == ("failed", "quorum-lost")
    assert "south (late)" in result["message"] and "west (late)" in result["message"]
    assert field.coordinator.progress("few")["status"] == "failed"
    flower = int(field.coordinator.attempts("few")[0]["flower"])
    field.until(lambda: field.federation.control.status(flower) == ("finished", "failed"), 60)
    assert not list(field.coordinator.run("few").glob("*.zip")), "no generator"


def test_a_wrong_clock_keeps_a_site_out_and_a_small_skew_does_not(field, tmp_path):
    """flwr signs the time of each request. Ten minutes ahead: refused. Twenty seconds behind: as if nothing was."""
    field.online()
    command = list(field.federation.supervisor.services["supernode west"].command)
    env = dict(field.federation.supervisor.services["supernode west"].env)
    skewed = (
        "import sys, datetime, flwr.supercore.date as d; real, skew = d.now, float(sys.argv.pop(1)); "
        "d.now = lambda: real() + datetime.timedelta(seconds=skew); "
        "from site_agent.supernode import main; main()"
    )
    node = field.federation.nodes["west"]
    os.kill(field.pid("supernode west"), 15)
    field.federation.supervisor.services.pop("supernode west").process.wait(20)
    try:
        field.until(lambda: node not in field.federation.control.online(), 60)
        for seconds, comes in ((600, False), (-20, True)):
            argv = [sys.executable, "-c", skewed, str(seconds), *command[3:]]
            with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                until = time.monotonic() + 40
                while time.monotonic() < until and node not in field.federation.control.online():
                    time.sleep(0.5)
                assert (node in field.federation.control.online()) == comes, seconds
                process.terminate()
                process.wait(20)
    finally:
        field.federation._start_supernode("west")
        field.online()


def test_a_server_that_is_killed_gets_its_bundle_when_it_is_back(field, tmp_path):
    """Progress that it missed is told again with the next change; the bundle waits for it."""
    field.online()
    server, tls, supervisor = tmp_path / "server", field.federation.tls, field.federation.supervisor

    def medsynx(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "medsynx", *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    (tmp_path / "password").write_text(secrets.token_urlsafe(12))
    base = ["--dir", str(server)]
    medsynx("server", "init", *base, "--email", "a@b.example", "--password-file", str(tmp_path / "password"))
    medsynx("server", "trust", *base, str(field.coordinator.path / "signing.pem.pub"))
    token, port = medsynx("server", "token", "create", *base, "--name", "c").split()[-1], free_port()
    serve = ["server", "serve", *base, "--port", str(port), "--tls-cert", str(tls.cert), "--tls-key", str(tls.key)]
    command = [sys.executable, "-m", "medsynx", *serve]
    supervisor.start("server", command, tmp_path / "server.log", restart=True)
    url, registry = f"https://localhost:{port}", field.coordinator.path / "registry.json"
    registry.write_text(json.dumps({"url": url, "token": token, "ca": str(tls.ca)}))
    try:
        field.until(lambda: answers(f"{url}/health", tls.ca), 60)
        field.ask("served")
        field.until(field.at("served", "cliques"))
        kill(field.pid("server"))
        result = field.result("served")
        assert result["status"] == "finished" and result["generator_id"], result
        assert supervisor.services["server"].restarts == 1
    finally:
        registry.unlink()
        supervisor.services.pop("server").process.kill()


def test_the_coordinators_service_itself_is_killed_and_its_next_one_goes_on(field, tmp_path):
    """The commands of the README: serve, run, stop, runs. Everything that service started dies with it; the run goes on behind its last exchange."""
    folder, tls = tmp_path / "coordinator", make_tls(tmp_path / "tls")
    gate, private = free_port(), free_port()
    (tmp_path / "study.json").write_text(json.dumps(RAW))

    def medsynx(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "medsynx", "coordinator", *arguments, "--dir", str(folder)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=200)

    def serve() -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "medsynx", "coordinator", "serve", "--dir", str(folder), "--host", "127.0.0.1"]
        argv += ["--tls-ca", str(tls.ca), "--tls-cert", str(tls.cert), "--tls-key", str(tls.key)]
        argv += ["--port", str(gate), "--private-port", str(private)]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline().startswith("no server is named"), "hospitals could not enrol here"
        assert process.stdout.readline().startswith("ready"), "the service is up"
        return process

    assert medsynx("run", str(tmp_path / "study.json")).returncode == 108, "nobody serves: said at once"
    service, moved = serve(), Supervisor()
    try:
        busy = subprocess.run(service.args, capture_output=True, text=True, timeout=60)
        assert busy.returncode == 109 and "coordinator-busy" in busy.stderr
        control, roster = Control(f"127.0.0.1:{private}", tls.ca), {}
        for site in SITES:  # the same hospitals, with nodes of this coordinator's
            from medsynx.keys import make_node_key

            roster[site] = str(control.register(site, make_node_key(tmp_path / "keys" / site)))
            old, port = field.federation.supervisor.services, free_port()
            node, executor = list(old[f"supernode {site}"].command), list(old[f"executor {site}"].command)
            for flag, value in (
                ("--superlink", f"127.0.0.1:{gate}"),
                ("--root-certificates", str(tls.ca)),
                ("--auth-supernode-private-key", str(tmp_path / "keys" / site)),
                ("--port", str(port)),
            ):
                node[node.index(flag) + 1] = value
            executor[executor.index("--runtime-api-address") + 1] = f"127.0.0.1:{port}"
            for what, command in (("supernode", node), ("executor", executor)):
                env = {**old[f"{what} {site}"].env, "FLWR_HOME": str(tmp_path / what / site)}
                moved.start(f"{what} {site}", command, tmp_path / f"{what}-{site}.log", env, restart=True)
        (folder / "roster.json").write_text(json.dumps(roster))
        until = time.monotonic() + 300
        while not control.online() >= {int(n) for n in roster.values()}:
            assert time.monotonic() < until
            moved.tend()
            time.sleep(0.5)
        asked = medsynx("run", str(tmp_path / "study.json"), "--name", "killed", "--detach", "--json")
        assert json.loads(asked.stdout) == {"run": "killed"}
        assert medsynx("run", str(tmp_path / "study.json"), "--name", "killed").returncode == 106
        checkpoint = folder / "runs" / "killed" / "checkpoint.npz"
        until = time.monotonic() + 300
        while not checkpoint.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        app = json.loads((folder / "runs" / "killed" / "lock").read_text())["pid"]
        kill(service.pid)
        service.wait()
        until = time.monotonic() + 30
        while not gone(app):
            assert time.monotonic() < until, "its ServerApp outlives it"
            time.sleep(0.2)
        service, result = serve(), folder / "runs" / "killed" / "result.json"
        until = time.monotonic() + 500
        while not result.exists():
            assert time.monotonic() < until
            moved.tend()
            time.sleep(0.5)
        told = json.loads(result.read_text())
        assert told["status"] == "finished" and set(told["sites"]) <= set(SITES) and len(told["sites"]) >= 3, told
        (row,) = json.loads(medsynx("runs", "--json").stdout)
        assert row["status"] == "finished" and len(row["starts"]) == 2 and row["starts"][1]["exchanges"] >= 1
        for site in SITES:
            charged = field.charged(site, "killed")
            assert len(charged) == len(set(charged))
        medsynx("run", str(tmp_path / "study.json"), "--name", "halt", "--detach")
        ended = medsynx("stop", "halt")
        assert ended.returncode == 0, ended.stderr
        assert medsynx("stop", "halt").returncode == 65 and medsynx("stop", "../x").returncode == 65
        rows = {r["run"]: r["code"] for r in json.loads(medsynx("runs", "--json").stdout)}
        assert rows == {"killed": None, "halt": "run-stopped"}
    finally:
        moved.stop()
        service.terminate()
        service.wait(30)


def test_twenty_hospitals_each_with_processes_of_its_own(tmp_path):
    """Forty processes for the sites alone; one dies in the middle and is named."""
    names = [f"site-{k:02d}" for k in range(20)]
    study = parse_study({**RAW, "name": "twenty", "rounds": {"quorum": 15, "deadline_seconds": 240}})
    with Supervisor() as supervisor:
        field = Field(tmp_path, supervisor, study, dict.fromkeys(names, 200))
        with field.waiting("site-07"):
            field.ask("twenty")
            kill(field.caught("site-07", worker=True, seconds=400))
        result = field.result("twenty", 600)
        assert result["status"] == "finished" and result["missing"] == {"site-07": "site-failed"}, result
        first, second = field.rounds("twenty")
        assert first["answered"] == [n for n in names if n != "site-07"] and second["answered"] == names
        field.settled("twenty")
