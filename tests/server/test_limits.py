"""What no request, bundle or token can do to the server: hold its connections, fill its memory, break its lists, open more than it is for."""

import json
import re
import socket

import pytest
from fastapi.testclient import TestClient
from sqlmodel import Session
from typer.testing import CliRunner

from medsynx.bundle import new_key, write_bundle
from medsynx.errors import MedsynxError
from onehost.certificates import make_tls
from server import bodies
from server.app import create_app
from server.auth import service as auth
from server.cli import app as commands
from server.folder import ServerFolder
from server.generators.models import Generator
from server.users import service as users
from server.users.models import Role
from tests.server.test_api import PASSWORD, RUN, code, signed_in, upload

PRIVACY = {
    "private": True,
    "trust": "local",
    "guarantees": [
        {"adversary": who, "epsilon": epsilon, "delta": 1e-5, "unit": "patient"}
        for who, epsilon in (("researcher", 1.0), ("coordinator", 2.0))
    ],
}
FIGURES = {"tvd1": {"value": 0.1, "floor": 0.4, "noisy": 0.41, "reliable": False}, "tstr_auc": {"value": 0.8}}
EVALUATION = {"gate": {"passed": True, "checks": []}, "figures": FIGURES}


@pytest.fixture
def app(tmp_path):
    folder = ServerFolder(tmp_path / "server")
    folder.create()
    app = create_app(folder.path)
    new_key(tmp_path / "key.pem")
    with Session(app.state.engine) as db:
        users.add(db, "admin@h.example", PASSWORD, Role.ADMIN)
        auth.trust(db, tmp_path / "key.pem.pub")
        app.state.service_token = auth.new_service_token(db, "run", 1)
        app.state.metrics_token = auth.new_service_token(db, "prometheus", 1, "metrics")
    return app


@pytest.fixture
def client(app):
    return TestClient(app)


@pytest.fixture
def signed(tmp_path, study):
    """Makes signed bundles: well-formed but for what a test puts into them."""

    def make(privacy=PRIVACY, evaluation=EVALUATION, **other):
        told = {"study.json": other.get("study", study).model_dump_json(), "report.html": "<!doctype html>"}
        told |= {
            name: v if isinstance(v, str) else json.dumps(v)
            for name, v in (("privacy.json", privacy), ("evaluation.json", evaluation))
        }
        write_bundle(tmp_path / "b.zip", {n: t.encode() for n, t in told.items()}, tmp_path / "key.pem")
        return (tmp_path / "b.zip").read_bytes()

    return make


def guarantee(**changes):
    return {**PRIVACY, "guarantees": [{**g, **changes} for g in PRIVACY["guarantees"]]}


def figure(**changes):
    return {**EVALUATION, "figures": {"tvd1": {**FIGURES["tvd1"], **changes}}}


@pytest.mark.parametrize(
    "odd",
    [
        {"privacy": guarantee(epsilon=float("nan"))},
        {"privacy": json.dumps(PRIVACY).replace("2.0", "1e999")},
        {"privacy": guarantee(unit="x" * 10**6)},
        {"privacy": guarantee(delta="small")},
        {"privacy": {**PRIVACY, "guarantees": []}},
        {"evaluation": figure(value=float("inf"))},
        {"evaluation": figure(floor="NaN")},
        {"evaluation": figure(value=[0.1])},
        {"evaluation": {**EVALUATION, "figures": [1]}},
        {"evaluation": {**EVALUATION, "gate": {"passed": "yes", "checks": []}}},
        {"evaluation": {**EVALUATION, "gate": {"passed": True, "checks": [{"name": "x" * 10**6}]}}},
        {"evaluation": {"figures": FIGURES}},
        {"evaluation": {**EVALUATION, "rounds": [float("inf")]}},
        {"evaluation": "[" * 100_000},
    ],
)
def test_a_signed_bundle_with_odd_figures_is_refused_and_breaks_no_list(client, signed, odd):
    assert code(upload(client, signed(**odd)), 400) == "bundle-unreadable"
    admin = signed_in(client, "admin")
    assert client.get("/generators", headers=admin).json() == []


def test_lists_show_what_noise_hides_and_no_more_of_a_title_than_a_line(client, signed, study):
    long = study.model_copy(update={"title": "x" * 10**6})
    upload(client, signed(study=long))
    (shown,) = client.get("/generators", headers=signed_in(client, "admin")).json()
    assert shown["title"] == "x" * 200
    assert shown["evaluation"]["tvd1"] == {"value": 0.1, "floor": 0.4, "reliable": False}
    assert shown["evaluation"]["tstr_auc"] == {"value": 0.8, "floor": None, "reliable": True}
    with Session(client.app.state.engine) as db:
        kept = db.get(Generator, shown["id"])
        kept.summary = {**kept.summary, "evaluation": {"tvd1": 0.1, "tvd2": None}}  # as the first release stored it
        db.add(kept)
        db.commit()
    (shown,) = client.get("/generators", headers=signed_in(client, "admin")).json()
    assert [f["value"] for f in shown["evaluation"].values()] == [0.1, None]


def test_a_download_holds_no_connection(app, client, signed):
    """Or sixteen that stall would hold all there are."""
    made, held = upload(client, signed()).json()["id"], []

    async def watched(scope, receive, send):
        async def seen(message):
            held.append(app.state.engine.pool.checkedout())
            await send(message)

        await app(scope, receive, seen)

    answer = TestClient(watched).get(f"/generators/{made}/bundle", headers=signed_in(client, "admin"))
    assert answer.status_code == 200 and held and not any(held)


async def ask(app, method, path, token, parts, **headers):
    """Status of an answer to a request whose body comes in parts, and how many of them were read."""
    left, status = list(parts), []
    raw = [(n.replace("_", "-").encode(), v.encode()) for n, v in headers.items()]
    raw += [(b"authorization", f"Bearer {token}".encode())] if token else []

    async def receive():
        return {"type": "http.request", "body": left.pop(), "more_body": bool(left)}

    async def send(message):
        status.append(message.get("status"))

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": raw,
    }
    await app(
        {**scope, "client": ("127.0.0.1", 1), "server": ("s", 1), "scheme": "https", "root_path": ""}, receive, send
    )
    return status[0], len(parts) - len(left)


async def test_no_body_is_read_for_whom_it_may_not_come_from_or_beyond_its_measure(app):
    token, form, part = app.state.service_token, "multipart/form-data; boundary=b", b"x" * 2**20
    assert await ask(app, "POST", "/generators", None, [part] * 3, content_type=form) == (401, 0)
    assert await ask(app, "POST", "/generators", app.state.metrics_token, [part] * 3, content_type=form) == (403, 0)
    too_long = str(bodies.MAX_BODY + 1)
    assert await ask(app, "PUT", "/runs/r", None, [part], content_length=too_long) == (413, 0)
    assert await ask(app, "PUT", "/runs/r", token, [part] * 100) == (413, bodies.MAX_BODY // 2**20 + 1)
    too_long = str(bodies.MAX_UPLOAD + 1)
    assert await ask(app, "POST", "/generators", token, [part], content_type=form, content_length=too_long) == (413, 0)


def test_an_upload_without_its_file_is_refused_by_name(client):
    service = {"Authorization": f"Bearer {client.app.state.service_token}"}
    for how in ({"files": {"other": ("b", b"")}}, {"json": {}}, {"content": b""}):
        assert code(client.post("/generators", headers=service, **how), 422) == "request-invalid"


def test_a_method_that_a_path_has_not_is_told_as_such(client):
    answer = client.put("/generators")
    assert code(answer, 405) == "request-invalid" and answer.headers["allow"]


def test_the_page_that_describes_the_api_needs_no_other_host(client):
    page = client.get("/docs").text
    wanted = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert len(wanted) >= 2 and "https://" not in page
    assert all(client.get(path).status_code == 200 for path in wanted)


def test_a_service_token_opens_what_it_was_made_for(client):
    metrics, run = client.app.state.metrics_token, client.app.state.service_token

    def status(method, path, token, **content):
        return client.request(method, path, headers={"Authorization": f"Bearer {token}"}, **content).status_code

    for method, path in (("POST", "/generators"), ("GET", "/enrolment/sites"), ("GET", "/generators"), ("GET", "/me")):
        assert status(method, path, metrics) == 403, path
    assert status("PUT", "/runs/r", metrics, json=RUN) == 403 and status("PUT", "/runs/r", run, json=RUN) == 200
    assert status("GET", "/metrics", metrics) == 200 and status("GET", "/metrics", run) == 403
    assert status("PUT", "/runs/r", metrics.replace("msm_", "msx_"), json=RUN) == 401, "its name cannot be changed"


def run(*arguments):
    return CliRunner().invoke(commands, [str(a) for a in arguments])


def test_a_refused_first_step_leaves_nothing_behind(tmp_path):
    (tmp_path / "short").write_text("short")
    for email, password in (("no address", None), ("it@h.example", tmp_path / "short")):
        file = ("--password-file", password) if password else ()
        refused = run("init", "--dir", tmp_path / "s", "--email", email, *file)
        assert refused.exception.code == "request-invalid" and not (tmp_path / "s").exists()
    assert run("init", "--dir", tmp_path / "s", "--email", "it@h.example").exit_code == 0
    assert run("token", "create", "--dir", tmp_path / "s", "--name", "p", "--scope", "metrics").stdout.startswith(
        "msm_"
    )


def test_half_a_certificate_is_none(app, tmp_path):
    tls = make_tls(tmp_path / "tls")
    for given in (("--tls-cert", tls.cert), ("--tls-key", tls.key), ("--tls-cert", tls.cert, "--tls-key", tls.ca)):
        refused = run("serve", "--dir", app.state.folder.path, *given).exception
        assert isinstance(refused, MedsynxError) and refused.code == "request-invalid"


def test_a_port_that_is_taken_is_said(app):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", "--dir", app.state.folder.path, "--port", taken.getsockname()[1])
    assert done.exception.code == "port-taken" and "MedSynX server on" not in done.output


def test_a_key_that_is_not_there_is_not_a_wrong_bundle(app, tmp_path):
    refused = run("trust", "--dir", app.state.folder.path, tmp_path / "signing.pem.pub").exception
    assert refused.code == "request-invalid" and "coordinator serve" in refused.hint
