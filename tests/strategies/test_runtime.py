"""The coordinator's processes are ready when hospitals can reach them, and a SuperLink without its gate does not go on."""

import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
import uvicorn

from medsynx.errors import MedsynxError
from medsynx.flower_processes import flower_env
from medsynx.listening import require_port, require_trust
from medsynx.processes import Supervisor, free_port
from onehost.certificates import make_tls
from strategies import service, superlink
from strategies.runtime import Runtime, Tls


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def listening(tmp_path):
    """Starts HTTPS listeners that are well."""
    tls, servers = make_tls(tmp_path / "tls"), []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.cert, tls.key)

    def start(port):
        servers.append(HTTPServer(("127.0.0.1", port), Healthy))
        servers[-1].socket = context.wrap_socket(servers[-1].socket, server_side=True)
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()

    yield tls, start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_ready_means_that_the_gate_listens_too(tmp_path, listening, host):
    tls, start = listening
    runtime = Runtime(Supervisor(), tmp_path, tmp_path / "service", tls, (host, free_port()))
    assert not runtime.ready()
    start(runtime.private_port)
    assert not runtime.ready(), "no hospital could reach it"
    start(runtime.gate[1])
    until = time.monotonic() + 60
    while not runtime.ready():
        assert time.monotonic() < until


def test_a_proxy_of_the_environment_does_not_stand_between_the_coordinators_own_parts(tmp_path, listening, monkeypatch):
    tls, start = listening
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    runtime = Runtime(Supervisor(), tmp_path, tmp_path / "service", tls, ("127.0.0.1", free_port()))
    for port in (runtime.private_port, runtime.gate[1]):
        start(port)
    assert runtime.ready()
    with pytest.raises(httpx.HTTPStatusError):  # it is asked, and is no SuperLink
        runtime.control.online()


@pytest.mark.parametrize(
    ("before", "after"), [(None, "127.0.0.1"), ("intern.example", "intern.example,127.0.0.1"), ("*", "*")]
)
def test_what_flowers_processes_tell_each_other_on_a_machine_goes_through_no_proxy(
    tmp_path, monkeypatch, before, after
):
    """The executor of a site shows its secret to the SuperNode beside it."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    if before:
        monkeypatch.setenv("NO_PROXY", before)
    env = flower_env(tmp_path / "home")
    assert env["NO_PROXY"] == env["no_proxy"] == after


def test_a_superlink_whose_gate_cannot_listen_ends(monkeypatch):
    ended = []
    monkeypatch.setattr("strategies.superlink.os._exit", ended.append)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit):
            superlink.listen(
                uvicorn.Config(lambda *a: None, port=taken.getsockname()[1], lifespan="off", log_config=None)
            )
    assert ended == [1]


def test_a_port_that_is_taken_is_said_before_anything_is_started(tmp_path, listening):
    tls, _ = listening
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for gate, private in ((port, None), (free_port(), port)):
            with pytest.raises(MedsynxError, match=f":{port}: Address already in use") as told:
                service.serve(tmp_path / "c", tls, ("127.0.0.1", gate), print, private)
            assert told.value.code == "port-taken" and not (tmp_path / "c" / "service").exists()
    require_port("127.0.0.1", port)


def test_a_service_that_no_hospital_can_enrol_at_says_so(tmp_path, listening, monkeypatch):
    told = []

    def start(runtime):
        raise RuntimeError("started")

    monkeypatch.setattr(Runtime, "start", start)
    for registry in ("{}", '{"url": "https://server.example"}'):
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c" / "registry.json").write_text(registry)
        with pytest.raises(RuntimeError, match="started"):
            service.serve(tmp_path / "c", listening[0], ("127.0.0.1", free_port()), told.append)
    assert len(told) == 1 and "medsynx coordinator connect" in told[0]


def test_a_certificate_that_hospitals_or_its_own_parts_would_not_take_is_said_before_anything_is_started(tmp_path):
    """Else the SuperLink is started in vain for a minute."""
    tls, other = make_tls(tmp_path / "tls"), make_tls(tmp_path / "other")
    require_trust(tls.cert, tls.key, tls.ca, "127.0.0.1")
    for wrong, why in (
        (Tls(other.ca, tls.cert, tls.key), "unable to get local issuer certificate"),
        (Tls(tls.ca, tls.cert, other.key), "KEY_VALUES_MISMATCH"),
        (Tls(tls.ca, tmp_path / "none", tls.key), "No such file"),
        (Tls(tls.key, tls.cert, tls.key), "no certificate authority"),
    ):
        with pytest.raises(MedsynxError, match=why) as told:
            service.serve(tmp_path / "c", wrong, ("127.0.0.1", free_port()), print)
        assert told.value.code == "request-invalid" and not (tmp_path / "c" / "service").exists()
    with pytest.raises(MedsynxError, match="certificate is not valid for"):
        require_trust(tls.cert, tls.key, tls.ca, "127.0.0.2")
