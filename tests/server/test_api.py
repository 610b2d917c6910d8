"""The REST API over a real bundle: who may do what, what is refused, what is served."""

import io
import json
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from sqlmodel import Session

from medsynx.bundle import new_key
from onehost.simulate import simulate
from server.app import create_app
from server.auth import service as auth
from server.auth.models import ServiceToken
from server.auth.routes import limiter
from server.folder import ServerFolder
from server.users import service as users
from server.users.models import Role
from tests.helpers import make_tables

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A good bundle, one made without noise, and one whose gate is not met, all signed by the same key."""
    from medsynx.study import parse_study
    from tests.conftest import RAW_STUDY

    root = tmp_path_factory.mktemp("bundles")
    tables = make_tables(root / "tables")
    new_key(root / "key.pem")
    out = {}
    for name, noise, gate in (("good", True, {}), ("bare", False, {}), ("closed", True, {"max_tvd2": 0.0001})):
        (root / name).mkdir()
        (root / name / "signing.pem").write_bytes((root / "key.pem").read_bytes())
        result = simulate(parse_study({**RAW_STUDY, "gate": gate}), tables, root / name, noise=noise)
        out[name] = Path(result["bundle"]).read_bytes()
    return out, root / "key.pem.pub"


@pytest.fixture
def app(tmp_path, bundles):
    folder = ServerFolder(tmp_path / "server")
    folder.create()
    app = create_app(folder.path)
    with Session(app.state.engine) as db:
        for role in Role:
            users.add(db, f"{role}@h.example", PASSWORD, role)
        auth.trust(db, bundles[1])
        app.state.service_token = auth.new_service_token(db, "run", 1)
    return app


@pytest.fixture
def client(app):
    return TestClient(app)


def signed_in(client, role):
    answer = client.post("/auth/token", data={"username": f"{role}@h.example", "password": PASSWORD})
    assert answer.status_code == 200
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def upload(client, content, headers=None):
    headers = headers or {"Authorization": f"Bearer {client.app.state.service_token}"}
    return client.post("/generators", files={"bundle": ("b.zip", content)}, headers=headers)


def code(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status and body["hint"]
    return body["code"]


def test_from_upload_to_download(client, bundles):
    made = upload(client, bundles[0]["good"])
    assert made.status_code == 201 and made.json()["status"] == "withheld"
    assert upload(client, bundles[0]["good"]).json()["id"] == made.json()["id"]
    path = f"/generators/{made.json()['id']}"
    coordinator, researcher = signed_in(client, "coordinator"), signed_in(client, "researcher")
    assert client.get("/generators", headers=researcher).json() == [], "a researcher does not see what is withheld"
    assert code(client.get(path, headers=researcher), 404) == "not-found"
    assert code(client.post(f"{path}/samples", json={"rows": 5}, headers=coordinator), 409) == "not-released"
    assert code(client.post(f"{path}/release", headers=researcher), 403) == "forbidden"
    assert client.post(f"{path}/release", headers=coordinator).json()["status"] == "released"

    order = {"rows": 1234, "seed": 7}
    csv = client.post(f"{path}/samples", json=order, headers=researcher)
    assert csv.headers["content-disposition"].endswith('.csv"')
    table = pd.read_csv(io.BytesIO(csv.content), dtype={"grade": str})  # a missing level would turn 1 into 1.0
    assert table.shape == (1234, 5) and set(table["sex"].dropna()) <= {"F", "M", "other"}
    parquet = client.post(f"{path}/samples", json={**order, "format": "parquet"}, headers=researcher)
    assert (
        pd.read_parquet(io.BytesIO(parquet.content))["grade"].dropna().astype(str).tolist()
        == table["grade"].dropna().astype(str).tolist()
    )
    assert client.post(f"{path}/samples", json=order, headers=researcher).content == csv.content, "same seed, same rows"

    women = {**order, "conditions": {"sex": "F", "age": {"min": 42}}}
    some = pd.read_csv(io.BytesIO(client.post(f"{path}/samples", json=women, headers=researcher).content))
    assert len(some) == 1234 and set(some["sex"]) == {"F"} and some["age"].min() >= 42
    wrong = {**order, "conditions": {"sex": "X"}}
    assert code(client.post(f"{path}/samples", json=wrong, headers=researcher), 400) == "condition-invalid"

    for form in ("npz", "dicom"):
        images = client.post(f"{path}/samples", json={**order, "format": form}, headers=researcher)
        assert code(images, 422) == "not-images"

    page = client.get(f"{path}/report", headers=researcher)
    assert page.text.startswith("<!doctype html>") and "default-src 'none'" in page.headers["content-security-policy"]
    report = client.get(f"{path}/report", headers={**researcher, "Accept": "application/json"}).json()
    assert report["privacy"]["private"] is True and "tstr_auc" in report["figures"]
    assert client.get(f"{path}/bundle", headers=researcher).content == bundles[0]["good"]
    client.post(f"{path}/withhold", headers=coordinator)
    assert code(client.post(f"{path}/samples", json=order, headers=researcher), 404) == "not-found"


def test_what_is_not_private_or_misses_its_gate_is_never_served(client, bundles):
    assert code(upload(client, bundles[0]["bare"]), 400) == "bundle-not-private"
    closed = upload(client, bundles[0]["closed"]).json()
    assert closed["gate"]["passed"] is False
    assert (
        code(client.post(f"/generators/{closed['id']}/release", headers=signed_in(client, "admin")), 409)
        == "gate-closed"
    )


def test_a_bundle_that_is_uploaded_twice_at_once_is_one_generator(client, bundles, monkeypatch):
    keep, met = ServerFolder.keep, []

    def meanwhile(self, content):
        """The other upload is done when this one has found that there is no such generator yet."""
        if not met:
            met.append(1)
            met.append(upload(client, bundles[0]["good"]).json()["id"])
        return keep(self, content)

    monkeypatch.setattr(ServerFolder, "keep", meanwhile)
    made = upload(client, bundles[0]["good"])
    assert made.status_code == 201 and made.json()["id"] == met[1]
    assert len(client.get("/generators", headers=signed_in(client, "admin")).json()) == 1


def test_broken_bundles(client, bundles):
    with zipfile.ZipFile(io.BytesIO(bundles[0]["good"])) as archive:
        files = {n: archive.read(n) for n in archive.namelist()}

    def again(**changed):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, content in {**files, **changed}.items():
                archive.writestr(name, content)
        return out.getvalue()

    study = files["study.json"].replace(b'"epsilon":2.0', b'"epsilon":0.1')
    assert study != files["study.json"]
    assert code(upload(client, again(**{"study.json": study})), 400) == "bundle-changed"
    envelope = json.loads(files["statement.json"])
    envelope["signatures"][0]["sig"] = envelope["signatures"][0]["sig"][::-1]
    assert code(upload(client, again(**{"statement.json": json.dumps(envelope)})), 400) == "bundle-signature"
    assert code(upload(client, b"nonsense"), 400) == "bundle-unreadable"


def test_an_unknown_signer_is_refused_and_nobody_is_known_at_first(client, bundles, tmp_path):
    folder = ServerFolder(tmp_path / "fresh")
    folder.create()
    app = create_app(folder.path)
    with Session(app.state.engine) as db:
        app.state.service_token = auth.new_service_token(db, "run", 1)
    assert code(upload(TestClient(app), bundles[0]["good"]), 400) == "bundle-signature"


def test_forged_and_expired_tokens(client):
    secret, now = client.app.state.folder.secret(), datetime.now(UTC)
    claims = {
        "iss": auth.ISSUER,
        "aud": auth.AUDIENCE,
        "sub": "admin@h.example",
        "iat": now,
        "exp": now + timedelta(hours=1),
    }
    assert (
        client.get("/me", headers={"Authorization": f"Bearer {jwt.encode(claims, secret, 'HS256')}"}).status_code == 200
    )
    bad = {
        "expired": auth.issue(secret, "admin@h.example", seconds=-1),
        "other secret": jwt.encode(claims, b"x" * 32, "HS256"),
        "no signature": jwt.encode(claims, None, "none"),
        "other audience": jwt.encode({**claims, "aud": "else"}, secret, "HS256"),
        "no expiry": jwt.encode({k: v for k, v in claims.items() if k != "exp"}, secret, "HS256"),
        "nobody": jwt.encode({**claims, "sub": "ghost@h.example"}, secret, "HS256"),
        "noise": "abc",
        "service": "msx_unknown",
    }
    for name, token in bad.items():
        assert code(client.get("/me", headers={"Authorization": f"Bearer {token}"}), 401) == "token-invalid", name
    assert code(client.get("/me"), 401) == "token-invalid"


def test_a_service_token_publishes_and_nothing_else(client, bundles):
    headers = {"Authorization": f"Bearer {client.app.state.service_token}"}
    for method, path in (
        ("GET", "/generators"),
        ("GET", "/runs"),
        ("GET", "/me"),
        ("POST", "/generators/x/release"),
        ("GET", "/users"),
    ):
        assert code(client.request(method, path, headers=headers), 403) == "forbidden", path
    with Session(client.app.state.engine) as db:
        token = db.get(ServiceToken, auth._digest(client.app.state.service_token))
        token.expires_at = datetime.now(UTC) - timedelta(seconds=1)
        db.add(token)
        db.commit()
    assert code(upload(client, bundles[0]["good"]), 401) == "token-invalid"
    assert client.app.state.service_token not in str(client.app.state.folder.database.read_bytes()), (
        "only its hash is kept"
    )


def test_signing_in_tells_nothing_and_is_limited(client):
    limiter.reset()
    wrong = client.post("/auth/token", data={"username": "admin@h.example", "password": "x" * 12})
    ghost = client.post("/auth/token", data={"username": "ghost@h.example", "password": "x" * 12})
    assert wrong.json() == ghost.json() and code(wrong, 401) == "login-failed"
    answers = [client.post("/auth/token", data={"username": "a@b.cd", "password": "x"}).status_code for _ in range(12)]
    assert answers[-1] == 429
    limiter.reset()


RUN = {
    "study_name": "small",
    "study_digest": "a" * 64,
    "family": "marginals",
    "status": "running",
    "round": 1,
    "rounds": 3,
    "started_at": "2026-01-01T00:00:00Z",
    "sites": [
        {"name": "north", "status": "answered"},
        {"name": "south", "status": "failed", "reason": "budget-exceeded"},
    ],
}


def test_runs_and_sites(client):
    service, coordinator = (
        {"Authorization": f"Bearer {client.app.state.service_token}"},
        signed_in(client, "coordinator"),
    )
    assert client.put("/runs/r-1", json=RUN, headers=service).status_code == 200
    client.put("/runs/r-1", json={**RUN, "status": "finished", "round": 3}, headers=service)
    (run,) = client.get("/runs", headers=coordinator).json()
    assert run["status"] == "finished" and run["sites"][1]["reason"] == "budget-exceeded"
    assert [s["name"] for s in client.get("/sites", headers=coordinator).json()] == ["north", "south"]
    assert code(client.get("/runs", headers=signed_in(client, "researcher")), 403) == "forbidden"
    assert code(client.put("/runs/Bad_Name", json=RUN, headers=service), 422) == "request-invalid"
    assert code(client.get("/runs/none", headers=coordinator), 404) == "not-found"


@pytest.mark.parametrize("rows", [0, -1, 10**9, "many"])
def test_absurd_orders(client, bundles, rows):
    made = upload(client, bundles[0]["good"]).json()
    admin = signed_in(client, "admin")
    client.post(f"/generators/{made['id']}/release", headers=admin)
    assert (
        code(client.post(f"/generators/{made['id']}/samples", json={"rows": rows}, headers=admin), 422)
        == "request-invalid"
    )


def test_every_route_is_described(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {
        "/auth/token",
        "/generators",
        "/generators/{generator_id}/samples",
        "/generators/{generator_id}/report",
    } <= set(paths)
    assert all(op.get("summary") for ops in paths.values() for op in ops.values())


def test_the_server_process_loads_no_training_code(tmp_path, bundles):
    """A process of its own draws rows from a bundle; torch, flwr and their like must not be in it."""
    (tmp_path / "b.zip").write_bytes(bundles[0]["good"])
    code_ = (
        "import sys; from pathlib import Path\nfrom server.folder import ServerFolder\nfrom server.app import create_app\n"
        "f = ServerFolder(Path(sys.argv[1])); f.create(); create_app(f.path)\n"
        "from medsynx.bundle import read_bundle\nfrom medsynx.samplers import draw\n"
        "assert len(next(draw(read_bundle(Path(sys.argv[2])), 10, 1))) == 10\n"
        "bad = {'torch', 'flwr', 'opacus', 'synthcity', 'sklearn', 'site_agent', 'strategies'} & set(sys.modules)\nprint(sorted(bad))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code_, str(tmp_path / "s"), str(tmp_path / "b.zip")], capture_output=True, text=True
    )
    assert out.stdout.strip() == "[]", out.stdout + out.stderr


def test_command_line(tmp_path, bundles):
    def run(*args):
        return subprocess.run([sys.executable, "-m", "medsynx", "server", *args], capture_output=True, text=True)

    folder = str(tmp_path / "s")
    assert run("serve", "--dir", folder).returncode == 60
    made = run("init", "--dir", folder, "--email", "it@h.example")
    assert made.returncode == 0 and "shown once" in made.stdout
    assert run("init", "--dir", folder, "--email", "it@h.example").returncode == 61
    assert run("token", "create", "--dir", folder, "--name", "x").stdout.startswith("msx_")
    assert run("trust", "--dir", folder, str(bundles[1])).stdout.startswith("trusted ")
    assert run("serve", "--dir", folder, "--host", "0.0.0.0").returncode == 68
    for name in ("token.secret", "server.sqlite"):
        assert (tmp_path / "s" / name).stat().st_mode & 0o077 == 0
