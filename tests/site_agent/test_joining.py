"""A hospital joins over real TLS: what it pins, what it keeps to itself, what stops it, and what preflight says."""

import contextlib
import dataclasses
import json
import socket
import struct
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from fastapi import FastAPI
from sqlmodel import Session
from typer.testing import CliRunner

from medsynx.errors import CODES, MedsynxError
from medsynx.flower_processes import NOT_TAKEN
from medsynx.keys import public_pem
from medsynx.processes import free_port
from onehost.certificates import authority, certified, make_tls
from server.app import create_app
from server.auth import service as auth
from server.enrolment import service
from server.folder import ServerFolder
from site_agent import enrolment, preflight
from site_agent.cli import app as site_app
from site_agent.enrolment import Enrolment
from site_agent.policy import SiteFolder, SitePolicy
from site_agent.run import why

SECRETS = ("site.key", "identity.pem", "node.key", "executor.secret")


@contextlib.contextmanager
def listening(app, tls, port):
    """The app over TLS on localhost, in a thread."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, ssl_certfile=tls.cert, ssl_keyfile=tls.key, log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.02)
    yield
    server.should_exit = server.force_exit = True
    thread.join(30)


def print_of(pem):
    return x509.load_pem_x509_certificate(pem.read_bytes()).fingerprint(hashes.SHA256()).hex()


class Federation:
    """A coordinator's server, and hospitals on demand."""

    def __init__(self, root):
        self.root, self.tls, self.port = root, make_tls(root / "tls"), free_port()
        self.url, self.fingerprint = f"https://localhost:{self.port}", print_of(self.tls.ca)
        folder = ServerFolder(root / "server")
        folder.create()
        service.set_address(folder, self.url, self.tls.ca)
        self.app = create_app(folder.path)

    def token(self, name, hours=1.0, **how):
        file = self.root / f"{name}.token"
        with Session(self.app.state.engine) as db:
            file.write_text(service.invite(db, name, datetime.now(UTC) + timedelta(hours=hours), **how) + "\n")
        return file

    def members(self):
        with Session(self.app.state.engine) as db:
            return {m.site: (m.status, m.identity, m.node_key) for m in service.members(db)}

    def site(self, name, enrolled=True):
        path = self.root / "sites" / name
        site = SiteFolder.create(path, SitePolicy(site=name, datasets={}))
        if enrolled:
            assert "is enrolled" in self.enrol(site, self.token(name))
        return site

    def enrol(self, site, token, url=None, fingerprint=None):
        pin = fingerprint or self.fingerprint
        return run(site, "enrol", url or self.url, "--token-file", token, "--ca-fingerprint", pin)


def run(site, *words, code=0):
    """A command's output, or the code it was refused with."""
    done = CliRunner().invoke(site_app, [words[0], "--dir", str(site.path), *map(str, words[1:])])
    if isinstance(done.exception, MedsynxError):
        return done.exception.code
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    made = Federation(tmp_path_factory.mktemp("joining"))
    with listening(made.app, made.tls, made.port):
        yield made


def fetched(site):
    """The coordinator's roster, shown and confirmed."""
    done = CliRunner().invoke(site_app, ["roster", "--dir", str(site.path), "--fetch"], input="y\n")
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def test_from_invitation_to_roster(federation):
    spaced = " ".join(federation.fingerprint.upper()[k : k + 4] for k in range(0, 64, 4))
    north = federation.site("north", enrolled=False)
    assert "is enrolled" in federation.enrol(north, federation.token("north"), fingerprint=spaced)
    token = federation.token("south")
    south = federation.site("south", enrolled=False)
    assert "others so far: north\n" in federation.enrol(south, token)
    for name in SECRETS:
        assert (north.path / name).stat().st_mode & 0o777 == 0o600, name
    kept = Enrolment.of(north.path)
    assert kept.superlink == f"localhost:{federation.port}" and kept.site == "north"
    assert (north.path / "ca.pem").read_text().strip() == federation.tls.ca.read_text().strip()
    assert not list(north.path.glob("*.new"))
    whole = str(federation.members()) + (federation.root / "server" / "server.sqlite").read_bytes().decode("latin-1")
    assert "PRIVATE" not in whole and federation.root.joinpath("north.token").read_text().strip() not in whole

    asked = CliRunner().invoke(site_app, ["roster", "--dir", str(north.path), "--fetch"], input="n\n")
    assert "south" in asked.output and "new" in asked.output and not (north.path / "roster.json").exists()
    assert run(north, "roster", "--fetch", "--yes") == "request-invalid" and not (north.path / "roster.json").exists()
    assert "installed" in fetched(north)
    roster = json.loads((north.path / "roster.json").read_text())
    assert roster["south"] == json.loads(run(south, "identity"))["south"]

    before, policy = federation.members(), (south.path / "enrolment.json").read_text()
    run(north, "rotate", "--yes")
    after = federation.members()
    assert after["south"] == before["south"] and (south.path / "enrolment.json").read_text() == policy
    assert all(a != b for a, b in zip(after["north"][1:], before["north"][1:], strict=True)), "both keys are new"
    assert "north" in fetched(south)
    assert "changed" in fetched(north), "its own key is not the installed one"
    assert Enrolment.of(north.path).site_id == kept.site_id
    run(north, "leave", "--yes")
    assert federation.members()["north"][0] == "left" and run(north, "rotate", "--yes") == "not-enrolled"
    assert run(north, "run") == "not-enrolled" and run(north, "roster", "--fetch") == "not-enrolled"
    assert "left" in run(north, "leave", "--yes"), "saying it twice does no harm"
    assert "is enrolled" in federation.enrol(north, federation.token("north")), "it may come back"
    assert Enrolment.of(north.path).site_id == kept.site_id and Enrolment.of(north.path).left_at is None


def test_what_cannot_enrol(federation, tmp_path):
    other = make_tls(tmp_path / "other")
    site = federation.site("west", enrolled=False)
    before = sorted(p.name for p in site.path.iterdir())
    token = federation.token("west")
    assert federation.enrol(site, token, fingerprint=print_of(other.ca)) == "ca-mismatch"
    assert federation.enrol(site, token, fingerprint="ab") == "ca-mismatch"
    assert federation.enrol(site, tmp_path / "none") == "invite-invalid"
    assert federation.enrol(site, token, url=f"https://localhost:{free_port()}") == "port-closed"
    assert federation.enrol(site, token, url="https://no-such-host.invalid:1") == "dns-failed"
    assert federation.enrol(site, token, url="http://localhost") == "request-invalid"
    assert sorted(p.name for p in site.path.iterdir()) == before, "nothing was written or made"
    assert federation.enrol(site, federation.token("elsewhere")) == "invite-invalid"
    assert federation.enrol(site, federation.token("west", hours=-1)) == "invite-expired"
    token = federation.token("west")
    (site.path / "identity.pem").chmod(0o640)
    assert federation.enrol(site, token) == "key-exposed"
    (site.path / "identity.pem").chmod(0o600)
    assert not (site.path / "enrolment.json").exists() and "west" not in federation.members()
    assert "is enrolled" in federation.enrol(site, token)
    assert federation.enrol(site, token) == "invite-used", "its next node key is another"
    twin = federation.site("twin", enrolled=False)
    (twin.path / "identity.pem").write_bytes((site.path / "identity.pem").read_bytes())
    assert federation.enrol(twin, federation.token("twin")) == "identity-taken"
    (twin.path / "site.yaml").write_text((twin.path / "site.yaml").read_text().replace("twin", "west"))
    with pytest.raises(MedsynxError, match="enrolled already"):
        federation.token("west")
    with Session(federation.app.state.engine) as db:
        service.revoke(db, "west")
    assert run(site, "rotate", "--yes") == "site-unknown"


def test_a_server_of_another_authority_hears_nothing(federation, tmp_path):
    """A proxy that opens TLS passes on what the true server says of itself, fingerprint and all."""
    site, heard = federation.site("east", enrolled=False), []
    proxy = FastAPI()
    about = {"version": "0.1.0", "ca": federation.tls.ca.read_text()}
    proxy.get("/enrolment")(lambda: about)
    proxy.post("/enrolment")(lambda: heard.append("a token") or {})
    forged, port = make_tls(tmp_path / "forged"), free_port()
    with listening(proxy, forged, port):
        url = f"https://localhost:{port}"
        assert federation.enrol(site, federation.token("east"), url=url) == "ca-mismatch" and heard == []
        bench = preflight.Bench(site.path, url, None, federation.fingerprint)
        (found,) = [f for f in preflight.preflight(bench) if f.check == "tls"]
        assert found.code == "ca-mismatch" and federation.fingerprint in found.says
        assert "MedSynX one-machine CA" in found.says and "telephone" in found.remedy
    assert not (site.path / "enrolment.json").exists()


@pytest.mark.parametrize("cut", ["enrol", "rotate"])
def test_what_was_cut_off_is_finished_by_the_same_command(federation, monkeypatch, cut):
    site = federation.site(f"cut-{cut}", enrolled=cut == "rotate")
    token = federation.token(f"cut-{cut}") if cut == "enrol" else None
    again = (lambda: federation.enrol(site, token)) if token else (lambda: run(site, "rotate", "--yes"))

    true_ask = enrolment.Line.ask

    class Cut(Exception):
        pass

    def power_off(*_):
        raise Cut

    for at in ("_install", "Line"):
        with monkeypatch.context() as patch:
            if at == "Line":  # the answer is lost on the way
                patch.setattr(enrolment.Line, "ask", lambda *a: (true_ask(*a), power_off()))
            else:
                patch.setattr(enrolment, "_install", power_off)
            with pytest.raises(AssertionError, match="Cut"):
                again()
        assert again() not in CODES
        if token:
            break  # used up now
    public = enrolment.read_node_key(site.path / "node.key").public_key()
    assert federation.members()[site.path.name][2] == public_pem(public).decode()
    assert "installed" in fetched(site)


def test_leaving_holds_when_nobody_can_be_told(federation):
    site = federation.site("quiet")
    record = Enrolment.of(site.path)
    record.model_copy(update={"url": f"https://localhost:{free_port()}"}).keep(site.path)
    assert run(site, "leave", "--yes") == "port-closed" and run(site, "run") == "not-enrolled"
    record.model_copy(update={"left_at": Enrolment.of(site.path).left_at}).keep(site.path)
    assert "left" in run(site, "leave", "--yes") and federation.members()["quiet"][0] == "left"


def test_spoilt_records_and_open_keys_stop_the_agent(federation):
    site = federation.site("spoilt")
    file = site.path / "enrolment.json"
    whole = file.read_text()
    for spoilt in (whole[:40], "", "{}", whole.replace("localhost:", "nowhere/")):
        file.write_text(spoilt)
        assert run(site, "run") == "not-enrolled"
    file.write_text(whole)
    for name in SECRETS:
        (site.path / name).chmod(0o644)
        assert run(site, "run") == "key-exposed", name
        (site.path / name).chmod(0o600)
    (site.path / "node.key").write_text("no key")
    assert run(site, "run") == "not-enrolled"
    (site.path / "ca.pem").write_text("no certificate")
    assert run(site, "roster", "--fetch") == "ca-invalid"


def test_the_end_of_a_supernode_is_told_with_its_reason():
    """As Flower writes it (flwr 1.41); the deployed runtime is asked in ``test_membership.py``."""
    rest = ["", "INFO:     Shutting down", "INFO:     Finished server process [7]"]
    start = ["INFO:     Application startup complete.", "\x1b[91mERROR \x1b[0m:     Exit Code: 305"]
    failed = "Failed to initialize the connection to the SuperLink."
    refused = [*start, failed, "[code: 2004] Failed to activate SuperNode.", *rest]
    assert "runs elsewhere" in why(refused)
    assert "runs elsewhere" not in why([*refused, *start, failed, "Connection refused", *rest])
    assert why([*start, failed, "Connection refused", *rest]) == f"{failed} Connection refused"
    assert "clock is wrong" in why([f"ERROR :     {NOT_TAKEN}", "INFO :      SuperNode terminated gracefully.", *rest])
    assert "clock" not in why([f"ERROR :     {NOT_TAKEN}", *start, failed, "Connection refused", *rest])
    assert why(["first", "last words\n"]) == "last words" and why([]) == "nothing in its log"
    assert why([*start, "\x1b[2Jall is well"]) == "?[2Jall is well", "what it says moves no cursor"


def test_a_roster_without_this_site_says_what_to_do(federation, tmp_path):
    site = federation.site("alone", enrolled=False)
    (tmp_path / "roster.json").write_text(json.dumps({"other": "A" * 43 + "="}))
    assert run(site, "roster", tmp_path / "roster.json", "--yes") == "roster-mismatch"
    assert not (site.path / "roster.json").exists()


def test_the_coordinator_connects_to_its_server(federation, tmp_path):
    from strategies.cli import app

    def connect(url, token, *more):
        (tmp_path / "token").write_text(f"{token}\n")
        words = ["connect", "--dir", tmp_path / "c", "--url", url, "--token-file", tmp_path / "token", *more]
        done = CliRunner().invoke(app, [str(w) for w in words])
        return done.exception.code if isinstance(done.exception, MedsynxError) else done.output

    with Session(federation.app.state.engine) as db:
        token = auth.new_service_token(db, "run", 1)
    ca = ["--ca", federation.tls.ca]
    assert connect(federation.url, "msx_wrong", *ca) == "token-invalid"
    assert connect(federation.url, token) == "federation-unreachable", "not a CA of the system"
    assert connect(f"https://localhost:{free_port()}", token, *ca) == "federation-unreachable"
    assert connect("nonsense", token) == "federation-unreachable"
    assert connect(federation.url, f"{token}\n{token}", *ca) == "request-invalid", "two tokens in one file"
    assert connect(federation.url, token, "--ca", tmp_path / "none") == "request-invalid"
    assert not (tmp_path / "c" / "registry.json").exists()
    assert "connected" in connect(f"{federation.url}/", token, *ca)
    kept = tmp_path / "c" / "registry.json"
    assert kept.stat().st_mode & 0o777 == 0o600 and json.loads(kept.read_text())["url"] == federation.url


@pytest.fixture
def bench(federation):
    path = federation.root / "sites" / "bench"
    if not path.exists():
        federation.site("bench")
    return preflight.Bench.of(path, None, None)


def first(bench):
    return next((f for f in preflight.preflight(bench) if f.problem), None)


def test_preflight_of_a_site_that_is_well(bench, federation):
    found = preflight.preflight(bench)
    assert [f.check for f in found] == ["keys", "disk", "gpu", "proxy", "dns", "port", "tls", "clock", "version"]
    assert not [f for f in found if f.code]
    site = SiteFolder(bench.folder)
    assert json.loads(run(site, "preflight", "--json"))[0]["check"] == "keys" and "tls" in run(site, "preflight")
    early = federation.site("early", enrolled=False)
    assert run(early, "preflight") == "not-enrolled"
    assert federation.fingerprint in run(early, "preflight", "--json", "--url", federation.url)
    run(early, "preflight", "--url", federation.url, "--ca-fingerprint", federation.fingerprint)


@pytest.mark.parametrize(("ahead", "code"), [(60, "clock-skewed"), (-200, None), (-400, "clock-skewed")])
def test_preflight_of_the_clock(bench, ahead, code):
    bench.clock = lambda: datetime.now(UTC) + timedelta(seconds=ahead)
    found = first(bench)
    assert (found.code if found else None) == code


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        (5, 5, None),
        (6, 6, "clock-skewed"),
        (-290, -290, None),
        (-291, -291, "clock-skewed"),
        (-20, 20, None),
        (5, 25, None),
        (6, 26, "clock-skewed"),
        (-310, -290, None),
        (-311, -291, "clock-skewed"),
    ],
)
def test_a_slow_answer_is_nobodys_clock(bench, monkeypatch, before, after, code):
    """Flower takes a signed time that is 5 seconds ahead, or 305 behind; when in its answer's twenty seconds a server told its time nobody knows."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    seen = dataclasses.replace(bench.seen, date=moment)
    monkeypatch.setattr(preflight.Line, "about", lambda line: seen)
    ticks = iter([before, after])
    slow = preflight.Bench(bench.folder, bench.url, bench.ca, clock=lambda: moment + timedelta(seconds=next(ticks)))
    (found,) = [f for f in preflight.preflight(slow) if f.check == "clock"]
    assert found.code == code


def break_keys(bench, patch):
    (bench.folder / "node.key").chmod(0o604)


def break_disk(bench, patch):
    usage = type("Usage", (), {"free": 2**30})
    patch.setattr(preflight.shutil, "disk_usage", lambda path: usage)


def break_proxy(bench, patch):
    patch.setenv("HTTPS_PROXY", "nonsense://proxy:3128")


def close_proxy(bench, patch):
    patch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")


def break_dns(bench, patch):
    bench.url = "https://no-such-host.invalid:9443"


def break_port(bench, patch):
    bench.url = f"https://localhost:{free_port()}"


def break_tls(bench, patch):
    bench.ca = make_tls(bench.folder / "other").ca.read_text()


def break_version(bench, patch):
    patch.setattr(preflight, "__version__", "9.9.0")


def stranger(bench, answer):
    """A server that hears what a client of TLS says first, and answers."""
    listener = socket.create_server(("127.0.0.1", 0))

    def speak():
        while True:
            taken, _ = listener.accept()
            with contextlib.suppress(OSError):
                taken.recv(1)
                answer(taken)
            taken.close()

    threading.Thread(target=speak, daemon=True).start()
    bench.url = f"https://127.0.0.1:{listener.getsockname()[1]}"


def break_server(bench, patch):
    def other(taken):
        taken.sendall(b"SSH-2.0-other\r\n")
        while taken.recv(65536):  # until the client has read that and hung up: else the end would be a reset
            pass

    stranger(bench, other)


def reset_server(bench, patch):
    stranger(bench, lambda taken: taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)))


@pytest.mark.parametrize(
    ("damage", "check", "code", "status"),
    [
        (break_keys, "keys", "key-exposed", 210),
        (break_disk, "disk", "disk-low", 211),
        (break_proxy, "proxy", "proxy-unusable", 212),
        (close_proxy, "port", "proxy-unusable", 212),
        (break_dns, "dns", "dns-failed", 213),
        (break_port, "port", "port-closed", 214),
        (break_tls, "tls", "ca-mismatch", 215),
        (break_version, "version", "version-differs", 217),
        (break_server, "port", "server-unwell", 218),
        (reset_server, "port", "server-unwell", 218),
    ],
)
def test_preflight_names_each_problem(bench, monkeypatch, damage, check, code, status):
    damage(bench, monkeypatch)
    try:
        found = first(bench)
        assert (found.check, found.code) == (check, code) and found.remedy and CODES[code][0] == status
        monkeypatch.setattr(preflight.Bench, "of", lambda *_: bench)
        assert code in run(SiteFolder(bench.folder), "preflight", "--json", code=status)
    finally:
        (bench.folder / "node.key").chmod(0o600)


def test_a_certificate_that_has_ended_is_told_from_one_of_another_authority(federation, bench, tmp_path):
    """Nobody stands between: to look for a proxy that inspects TLS, and not to go on, would be the wrong remedy."""
    tls, port = certified(tmp_path / "tls", *authority(), days=-1), free_port()
    bench.url, bench.ca = f"https://localhost:{port}", tls.ca.read_text()
    with listening(federation.app, tls, port):
        found = first(bench)
    assert (found.check, found.code) == ("tls", "server-unwell")
    assert "not valid by this machine's clock" in found.says and "certificate has ended" in found.remedy
