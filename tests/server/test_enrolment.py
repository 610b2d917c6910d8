"""Joining at the server: what a one-time token opens, what a signature opens, and everything that is refused."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi.testclient import TestClient
from sqlmodel import Session
from typer.testing import CliRunner

from medsynx import membership
from medsynx.errors import MedsynxError
from medsynx.membership import Asked, Join, Keys, token_digest
from onehost.certificates import make_tls
from server.app import create_app
from server.auth import service as auth
from server.enrolment import service
from server.folder import ServerFolder

LATER = datetime.now(UTC) + timedelta(hours=1)


class Site:
    """A hospital's keys."""

    def __init__(self, name):
        self.name, self.identity, self.node = (
            name,
            Ed25519PrivateKey.generate(),
            ec.generate_private_key(ec.SECP384R1()),
        )

    def keys(self, occasion, name=None):
        return Keys.prove(name or self.name, occasion, self.identity, self.node)

    def join(self, token, keys=None):
        keys = keys or self.keys(token_digest(token))
        return Join(token=token, site=self.name, keys=keys).model_dump(mode="json")

    def ask(self, action, keys=None, at=None):
        asked = Asked(action=action, site=self.name, at=at or datetime.now(UTC), keys=keys)
        signature = membership.encode(self.identity.sign(asked.words()))
        return asked.model_copy(update={"signature": signature}).model_dump(mode="json")


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return make_tls(tmp_path_factory.mktemp("tls")).ca


@pytest.fixture
def client(tmp_path, ca):
    folder = ServerFolder(tmp_path / "server")
    folder.create()
    service.set_address(folder, "https://fed.example:9443", ca)
    return TestClient(create_app(folder.path))


@pytest.fixture
def db(client):
    with Session(client.app.state.engine) as db:
        yield db


def enrolled(client, db, name="north"):
    site = Site(name)
    answer = client.post("/enrolment", json=site.join(service.invite(db, name, LATER)))
    assert answer.status_code == 201, answer.text
    return site, answer.json()


def code(answer):
    assert answer.status_code >= 400 and answer.json()["hint"], answer.text
    return answer.json()["code"]


def states(client, db):
    headers = {"Authorization": f"Bearer {auth.new_service_token(db, 'run', 1)}"}
    return {s["site"]: s for s in client.get("/enrolment/sites", headers=headers).json()}


def test_from_token_to_roster(client, db, ca):
    about = client.get("/enrolment").json()
    assert about["ca"].strip() == ca.read_text().strip() and about["version"]
    north, told = enrolled(client, db)
    south, later = enrolled(client, db, "south")
    assert told["superlink"] == "fed.example:9443" and set(told["roster"]) == {"north"}
    assert set(later["roster"]) == {"north", "south"} and later["site_id"] != told["site_id"]
    roster = client.post("/enrolment/roster", json=north.ask("roster")).json()["roster"]
    assert roster["south"] == membership.encode(south.identity.public_key().public_bytes_raw())
    assert {n: s["status"] for n, s in states(client, db).items()} == {"north": "enrolled", "south": "enrolled"}
    assert code(client.get("/enrolment/sites")) == "token-invalid"


def test_a_token_works_once_for_one_site_and_not_for_ever(client, db):
    north, other = Site("north"), Site("south")
    token = service.invite(db, "north", LATER)
    assert token not in str([i.model_dump() for i in service.invited(db)]), "the server keeps its hash"
    assert code(client.post("/enrolment", json=other.join(token))) == "invite-invalid"
    assert code(client.post("/enrolment", json=north.join(token + "x"))) == "invite-invalid"
    first = client.post("/enrolment", json=north.join(token))
    again = client.post("/enrolment", json=north.join(token))
    assert again.status_code == 201 and again.json() == first.json(), "an answer that got lost is had again"
    thief = Site("north")
    assert code(client.post("/enrolment", json=thief.join(token))) == "invite-used"
    late = service.invite(db, "west", datetime.now(UTC) - timedelta(seconds=1))
    assert code(client.post("/enrolment", json=Site("west").join(late))) == "invite-expired"
    service.revoke(db, "north")
    assert code(client.post("/enrolment", json=north.join(token))) == "invite-used", "nor after the site was revoked"


def test_keys_must_be_held_by_who_sends_them(client, db):
    north, token = Site("north"), service.invite(db, "north", LATER)
    good = north.keys(token_digest(token))
    stranger = Site("north").keys(token_digest(token))
    weak = ec.generate_private_key(ec.SECP256R1())
    wrong = [
        good.model_copy(update={"identity": stranger.identity}),
        good.model_copy(update={"node_key": stranger.node_key}),
        good.model_copy(update={"node_proof": stranger.node_proof}),
        good.model_copy(update={"node_key": good.node_key + "\n"}),
        north.keys("another occasion"),
        north.keys(token_digest(token), "south"),
        Keys.prove("north", token_digest(token), north.identity, weak),
    ]
    for keys in wrong:
        assert code(client.post("/enrolment", json=north.join(token, keys))) == "proof-invalid"
    assert client.post("/enrolment", json=north.join(token, good)).status_code == 201, "a failure uses nothing up"


def test_two_sites_with_one_name_or_identity(client, db):
    north, _ = enrolled(client, db)
    with pytest.raises(MedsynxError) as taken:
        service.invite(db, "north", LATER)
    assert taken.value.code == "site-taken"
    twin = Site("twin")
    twin.identity = north.identity
    token = service.invite(db, "twin", LATER)
    assert code(client.post("/enrolment", json=twin.join(token))) == "identity-taken"
    clone = Site("twin")
    clone.node = north.node
    assert code(client.post("/enrolment", json=clone.join(token))) == "identity-taken"
    early = [service.invite(db, "east", LATER) for _ in range(2)]
    assert client.post("/enrolment", json=Site("east").join(early[0])).status_code == 201
    assert code(client.post("/enrolment", json=Site("east").join(early[1]))) == "invite-expired"
    assert [i.site for i in service.invited(db)] == ["twin"], (
        "an invitation that was taken up ends the others of its site"
    )
    assert set(states(client, db)) == {"east", "north"}


def test_a_signed_request_counts_once_for_its_own_purpose(client, db):
    north, _ = enrolled(client, db)
    asked = north.ask("roster")
    assert client.post("/enrolment/roster", json=asked).status_code == 200
    assert code(client.post("/enrolment/roster", json=asked)) == "proof-invalid"
    assert code(client.post("/enrolment/leave", json=north.ask("roster"))) == "proof-invalid"
    assert code(client.post("/enrolment/leave", json={**north.ask("roster"), "action": "leave"})) == "proof-invalid"
    for minutes in (-6, 6):
        old = north.ask("roster", at=datetime.now(UTC) + timedelta(minutes=minutes))
        assert code(client.post("/enrolment/roster", json=old)) == "proof-invalid"
    assert code(client.post("/enrolment/leave", json=Site("north").ask("leave"))) == "proof-invalid"
    assert code(client.post("/enrolment/leave", json=Site("ghost").ask("leave"))) == "site-unknown"
    assert code(client.post("/enrolment/leave", json={"action": "leave"})) == "request-invalid"
    assert states(client, db)["north"]["status"] == "enrolled"


def test_new_keys_are_signed_by_the_old_identity(client, db):
    north, told = enrolled(client, db)
    south, _ = enrolled(client, db, "south")
    new, before = Site("north"), states(client, db)
    assert code(client.post("/enrolment/rotate", json=new.ask("rotate", new.keys("rotate")))) == "proof-invalid"
    assert code(client.post("/enrolment/rotate", json=north.ask("rotate"))) == "proof-invalid"
    assert code(client.post("/enrolment/rotate", json=north.ask("rotate", south.keys("rotate")))) == "proof-invalid"
    body = north.ask("rotate", new.keys("rotate"))
    done = client.post("/enrolment/rotate", json=body)
    assert done.json()["site_id"] == told["site_id"] and client.post("/enrolment/rotate", json=body).status_code == 200
    after = states(client, db)
    assert after["north"]["node_key"] != before["north"]["node_key"] and after["south"] == before["south"]
    assert code(client.post("/enrolment/roster", json=north.ask("roster"))) == "proof-invalid", "the old key is void"
    assert client.post("/enrolment/roster", json=new.ask("roster")).status_code == 200


def test_leaving_and_coming_back(client, db):
    north, told = enrolled(client, db)
    assert client.post("/enrolment/leave", json=north.ask("leave")).json()["roster"] == {}
    assert states(client, db)["north"]["status"] == "left"
    assert code(client.post("/enrolment/roster", json=north.ask("roster"))) == "site-unknown"
    back = Site("north")
    back.identity = north.identity
    again = client.post("/enrolment", json=back.join(service.invite(db, "north", LATER)))
    assert again.json()["site_id"] == told["site_id"]
    forgotten, token = (service.invite(db, "north", LATER, renews=True) for _ in range(2))
    assert client.post("/enrolment", json=Site("north").join(token)).json()["site_id"] == told["site_id"]
    assert code(client.post("/enrolment", json=Site("north").join(forgotten))) == "invite-expired"
    service.invite(db, "north", LATER, renews=True)
    service.revoke(db, "north")
    assert service.invited(db) == [], "revoking takes its open invitations too"
    with pytest.raises(MedsynxError) as unknown:
        service.invite(db, "ghost", LATER, renews=True)
    assert unknown.value.code == "site-unknown"


def test_the_commands(tmp_path, ca):
    from server.cli import app

    def run(*words):
        done = CliRunner().invoke(app, [*map(str, words), "--dir", str(tmp_path / "s")])
        return done.exception.code if isinstance(done.exception, MedsynxError) else done.output

    ServerFolder(tmp_path / "s").create()
    assert run("invite", "create", "--site", "north") == "coordinator-unset"
    assert run("federation", "--url", "http://fed.example", "--ca", ca) == "request-invalid"
    assert run("federation", "--url", "https://fed.example:9443", "--ca", tmp_path / "none.pem") == "ca-invalid"
    fingerprint = run("federation", "--url", "https://fed.example:9443", "--ca", ca).split()[-1]
    shown = run("invite", "create", "--site", "north")
    assert fingerprint in shown and "msj_" in shown and "site enrol https://fed.example:9443" in shown
    assert run("invite", "create", "--site", "North!") == "request-invalid"
    assert run("invite", "create", "--site", "west", "--expires", "soon") == "request-invalid"
    told = json.loads(run("invite", "create", "--site", "west", "--expires", "30m", "--json"))
    assert told["token"].startswith("msj_") and told["ca_fingerprint"] == fingerprint
    listed = json.loads(run("site", "list", "--json"))
    assert [i["site"] for i in listed["invited"]] == ["north", "west"] and "msj_" not in json.dumps(listed)
    assert run("site", "revoke", "west") == "site-unknown" and run("site", "rotate", "west") == "site-unknown"


def test_the_list_shows_what_sites_compare_over_the_telephone(client, db, tmp_path):
    from server.cli import app

    north, _ = enrolled(client, db)
    shown = CliRunner().invoke(app, ["site", "list", "--dir", str(tmp_path / "server")]).output
    assert membership.fingerprint(north.identity.public_key().public_bytes_raw()) in shown


def test_junk_holds_up_nobody(client, db):
    """Behind the gate all requests come from one address."""
    north, _ = enrolled(client, db)
    token = service.invite(db, "south", LATER)
    thief = Site("north")
    said = [code(client.post("/enrolment/roster", json=thief.ask("roster"))) for _ in range(70)]
    assert said[0] == "proof-invalid" and said[-1] == "too-many-requests"
    body = Site("south").join("msj_junk")
    assert {code(client.post("/enrolment", json=body)) for _ in range(250)} == {"invite-invalid", "too-many-requests"}
    assert client.post("/enrolment/roster", json=north.ask("roster")).status_code == 200
    assert client.post("/enrolment", json=Site("south").join(token)).status_code == 201
