"""What runs in containers and under systemd: images and units are checked as text, their entry points as plain processes."""

import io
import json
import logging
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from fastapi.testclient import TestClient
from sqlmodel import Session

from medsynx import logs
from medsynx.errors import CODES, MedsynxError
from medsynx.processes import Supervisor, alone, free_port
from onehost.certificates import make_tls
from server.app import create_app
from server.auth import service as auth
from server.folder import ServerFolder
from server.users import service as users
from server.users.models import Role
from site_agent import pulse

ROOT = Path(__file__).parents[2]
IMAGES = {f.stem: f for f in sorted((ROOT / "docker").glob("*.Dockerfile"))}
UNITS = {f.stem.removeprefix("medsynx-"): f for f in sorted((ROOT / "deploy" / "systemd").glob("*.service"))}
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text("utf-8"))
ROLES = {"server", "coordinator", "site"}


def instructions(image: str) -> list[tuple[str, str]]:
    """Instruction and argument, comments gone and lines joined."""
    text = re.sub(r"^\s*#.*\n", "", IMAGES[image].read_text("utf-8"), flags=re.M)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0], line.split(None, 1)[1].strip()) for line in lines if line.strip()]


def last(image: str, name: str) -> str:
    return [argument for word, argument in instructions(image) if word == name][-1]


def words(argument: str) -> list[str]:
    """The JSON list of a CMD, ENTRYPOINT or HEALTHCHECK."""
    return json.loads(argument[argument.index("[") :])


def test_there_is_an_image_a_service_and_a_unit_for_each_role():
    assert set(IMAGES) == set(UNITS) == set(COMPOSE["services"]) == ROLES


@pytest.mark.parametrize("image", sorted(ROLES))
def test_images_are_slim_pinned_and_not_root(image):
    steps = instructions(image)
    froms = [a for w, a in steps if w == "FROM"]
    assert len(froms) == 2, "built in one stage, run from another"
    (python,) = [a for w, a in steps if w == "ARG" and a.startswith("PYTHON=")]
    assert re.fullmatch(r"PYTHON=3\.1[12]\.\d+-slim-[a-z]+", python) and all("${PYTHON}" in f for f in froms)
    text = IMAGES[image].read_text("utf-8")
    assert not re.search(r":latest|ADD |sudo|apt-get|curl |--privileged|chmod 777", text)
    assert re.search(r"ARG UV=\d+\.\d+\.\d+\n", text) and "--constraint requirements.lock" in text
    final = steps[[k for k, (w, _) in enumerate(steps) if w == "FROM"][-1] :]
    names = [w for w, _ in final]
    assert "COPY" in names and [a for w, a in final if w == "COPY"] == ["--from=build /opt/medsynx /opt/medsynx"]
    user = last(image, "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user), "a number, so that it can be told not to be root"
    assert names.index("USER") > names.index("RUN") and names.index("USER") < names.index("CMD")
    assert not re.search(r"(PASSWORD|TOKEN|SECRET|KEY)=", text), "no secret is built in"
    copied = {a.split()[0] for w, a in steps if w == "COPY"} - {"--from=build", "pyproject.toml", "README.md"}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert copied <= kept and all((ROOT / k).exists() for k in kept)


@pytest.mark.parametrize("role", sorted(ROLES))
def test_services_have_a_read_only_root_no_capabilities_and_a_health_check(role):
    service = COMPOSE["services"][role]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and service["init"] is True
    assert service["security_opt"] == ["no-new-privileges:true"] and service["user"] == last(role, "USER")
    assert service["build"]["dockerfile"] == f"docker/{role}.Dockerfile" and not service["image"].endswith(":latest")
    assert service["stop_grace_period"] == "30s", "as long as the units have, and longer than a site takes to sign off"
    assert "privileged" not in service and "network_mode" not in service
    assert {v.split(":")[0] for v in service["volumes"] if not v.startswith("$")} <= set(COMPOSE["volumes"])
    assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
    needed = {w.removeprefix("/run/secrets/") for w in words(last(role, "CMD")) if w.startswith("/run/secrets/")}
    assert needed <= set(service.get("secrets", ()))
    assert "--interval" in last(role, "HEALTHCHECK")
    assert ("ports" in service) == (role != "site"), "nothing of a hospital listens"


@pytest.mark.parametrize("role", sorted(ROLES))
def test_units_run_what_the_images_run_and_are_hardened(role):
    text = UNITS[role].read_text("utf-8")
    (start,) = re.findall(r"^ExecStart=/opt/medsynx/bin/medsynx (.*)$", text, re.M)
    plain = start.replace("${CREDENTIALS_DIRECTORY}", "/run/secrets").replace("/var/lib/medsynx", "")
    assert plain.split() == words(last(role, "CMD"))
    for line in (
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "CapabilityBoundingSet=",
        "UMask=0077",
        "User=medsynx",
        f"StateDirectory=medsynx/{role}",
        "Restart=on-failure",
    ):
        assert f"\n{line}\n" in text, line
    assert ("SuccessExitStatus=130" in text) == (role == "coordinator"), "what a plain kill ends it with is no failure"
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "verify", UNITS[role]], capture_output=True, text=True)
        told = [line for line in done.stderr.splitlines() if "medsynx" in line and "not executable" not in line]
        assert told == []


def entry_point(role: str, folder: Path, tls: Path, port: int) -> tuple[list[str], list[str]]:
    """The image's command and its health check, with this machine's paths and port."""

    def here(argument: list[str]) -> list[str]:
        first = {"medsynx": [sys.executable, "-m", "medsynx"], "python": [sys.executable]}[argument[0]]
        text = [a.replace(f"/{role}", str(folder)) if a == f"/{role}" else a for a in argument[1:]]
        text = [a.replace("/run/secrets/tls-", f"{tls}/").replace("0.0.0.0", "127.0.0.1") for a in text]
        return first + [re.sub(r"\b(8400|8443)\b", str(port), a) for a in text]

    return here(words(last(role, "ENTRYPOINT")) + words(last(role, "CMD"))), here(words(last(role, "HEALTHCHECK")))


@pytest.mark.federation
@pytest.mark.parametrize("role", ["server", "coordinator"])
def test_entry_points_start_and_answer_their_health_check(tmp_path, role):
    tls = make_tls(tmp_path / "made")
    (tmp_path / "tls").mkdir()
    for name, file in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)):
        shutil.copy(file, tmp_path / "tls" / name)
    folder = tmp_path / role
    if role == "server":
        ServerFolder(folder).create()
    command, check = entry_point(role, folder, tmp_path / "tls", free_port())
    assert subprocess.run(check, capture_output=True).returncode != 0, "unwell before it runs"
    with Supervisor() as supervisor:
        supervisor.start(role, command, tmp_path / "log", {"MEDSYNX_LOG": "json"})
        until = time.monotonic() + 240
        while subprocess.run(check, capture_output=True).returncode != 0:
            assert time.monotonic() < until and supervisor.services[role].process.poll() is None, supervisor.tail(role)
            time.sleep(0.5)


def test_a_site_that_is_not_enrolled_says_so_and_is_not_well(tmp_path, study):
    from tests.conftest import small_table
    from tests.helpers import make_site

    site = make_site(tmp_path / "site", study, small_table(50, 1))
    command, check = entry_point("site", site.path, tmp_path, 0)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == CODES["not-enrolled"][0] and "[not-enrolled]" in done.stderr
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == CODES["agent-down"][0] and "[agent-down]" in done.stderr


def test_the_agents_pulse_tells_when_a_part_is_down_or_it_is_silent_or_gone(tmp_path, monkeypatch):
    with Supervisor() as supervisor, alone(tmp_path / pulse.LOCK, MedsynxError("already-running", "")):
        for name, seconds in (("executor", "60"), ("supernode", "0")):
            supervisor.start(name, ["sleep", seconds], tmp_path / "log", {"PATH": "/usr/bin:/bin"})
        pulse.beat(tmp_path, supervisor)
        supervisor.services["supernode"].process.wait()
        pulse.beat(tmp_path, supervisor)
        with pytest.raises(MedsynxError, match="not up: supernode"):
            pulse.check(tmp_path)
        del supervisor.services["supernode"]
        pulse.beat(tmp_path, supervisor)
        pulse.check(tmp_path)
        seen = (tmp_path / pulse.FILE).stat().st_mtime
        monkeypatch.setattr(pulse.time, "time", lambda: seen + 60)
        with pytest.raises(MedsynxError, match="last seen 60 seconds ago"):
            pulse.check(tmp_path)
    monkeypatch.undo()
    with pytest.raises(MedsynxError, match="has ended"):  # at once, though what it wrote is of now
        pulse.check(tmp_path)


@pytest.mark.parametrize("form", ["json", "text"])
def test_logs_hold_no_message_of_an_exception(monkeypatch, form):
    """A parser's error quotes the cell it stumbled over."""
    monkeypatch.setenv(logs.VARIABLE, form)
    root, stream = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    logs.start(stream)
    log = logging.getLogger("medsynx.test")
    try:
        float("Smith, John")
    except ValueError:
        log.exception("step %r failed", "tables")
    log.warning("refused: %s", MedsynxError("policy-refused", "not now"))
    text = stream.getvalue()
    assert "Smith" not in text and "ValueError" in text and Path(__file__).name in text and "not now" in text
    if form == "json":
        first, second = map(json.loads, text.splitlines())
        assert first["error"] == "builtins.ValueError" and first["level"] == "error" and second["logger"] == log.name
        assert datetime.fromisoformat(first["at"]).tzinfo == UTC


def test_metrics_are_for_a_token_of_their_own_and_count(tmp_path):
    folder = ServerFolder(tmp_path / "server")
    folder.create()
    app = create_app(folder.path)
    with Session(app.state.engine) as db:
        users.add(db, "r@h.example", "correct horse battery", Role.RESEARCHER)
        tokens = [auth.new_service_token(db, scope, 1, scope) for scope in ("metrics", "coordinator")]
    client = TestClient(app)
    assert client.get("/metrics").status_code == 401
    signed_in = client.post("/auth/token", data={"username": "r@h.example", "password": "correct horse battery"})
    researcher = {"Authorization": f"Bearer {signed_in.json()['access_token']}"}
    assert client.get("/metrics", headers=researcher).status_code == 403
    watcher, service = ({"Authorization": f"Bearer {token}"} for token in tokens)
    assert client.get("/metrics", headers=service).status_code == 403, "a scrape does not need what publishes"
    run = {
        "study_name": "s",
        "study_digest": "0" * 64,
        "family": "marginals",
        "status": "running",
        "round": 1,
        "rounds": 4,
    }
    run |= {"started_at": datetime.now(UTC).isoformat(), "sites": [{"name": "north", "status": "online"}]}
    assert client.put("/runs/run-1", headers=service, json=run).status_code < 300
    answer = client.get("/metrics", headers=watcher)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert client.request("BREW", "/health").status_code in range(400, 500)
    answer = client.get("/metrics", headers=watcher)
    samples = [line for line in answer.text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [\d.]+', s) for s in samples)
    assert 'medsynx_http_answers_total{method="GET",status="4xx"} 3' in samples
    assert 'medsynx_http_answers_total{method="other",status="4xx"} 1' in samples, "names come from us"
    assert 'medsynx_runs{state="running"} 1' in samples and 'medsynx_latest_run_sites{state="online"} 1' in samples
    assert "h.example" not in answer.text and "north" not in answer.text


def test_every_variable_of_the_environment_is_described():
    page = (ROOT / "docs" / "running.md").read_text("utf-8")
    rooms = ("medsynx", "site_agent", "strategies", "evaluation", "server", "tui", "onehost", "docker")
    files = [f for room in rooms for f in (ROOT / room).rglob("*") if f.suffix in (".py", ".yaml", ".Dockerfile")]
    used = {v for f in files for v in re.findall(r"MEDSYNX_[A-Z_]*[A-Z]", f.read_text("utf-8"))}
    described = set(re.findall(r"MEDSYNX_[A-Z_]*[A-Z]", page))
    assert described == used, described ^ used
