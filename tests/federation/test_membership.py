"""The deployed runtime with hospitals that enrolled over its one port: who comes online, and who gets in with what they should not use.

Attacks speak Flower's own protocol with Flower's own code, over TLS, to the real gate and SuperLink.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.primitives.asymmetric import sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.routers.runtime.router import router as runtime
from flwr.superlink.routers.control.router import router as control
from typer.testing import CliRunner

from medsynx.keys import make_node_key, public_pem
from medsynx.processes import Supervisor, free_port
from onehost.federation import LocalFederation
from server.cli import app as server_app
from site_agent.cli import app as site_app
from site_agent.condition import last_heard
from site_agent.enrolment import read_node_key
from site_agent.policy import SiteFolder, SitePolicy
from strategies.cli import app as coordinator_app

pytestmark = [pytest.mark.federation, pytest.mark.timeout(900)]


def command(app, *words):
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def until(ready, seconds, federation):
    end = time.monotonic() + seconds
    while not ready():
        federation.check()
        assert time.monotonic() < end, {n: federation.supervisor.tail(n, 4) for n in federation.supervisor.services}
        time.sleep(0.2)


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Desk:
    """A federation, its server's commands, and its sites' folders."""

    def __init__(self, root, supervisor):
        self.root, self.supervisor = root, supervisor
        port, base = free_port(), ["--dir", root / "server"]
        command(server_app, "init", *base, "--email", "it@hospital.example")
        token = command(server_app, "token", "create", *base, "--name", "run").strip()
        serve = [sys.executable, "-m", "medsynx", "server", "serve", "--dir", str(root / "server"), "--port", str(port)]
        supervisor.start("server", serve, root / "server.log")
        url, coordinator = f"http://127.0.0.1:{port}", root / "coordinator"
        (root / "run.token").write_text(token)
        self.federation = LocalFederation(supervisor, root / "federation", {}, coordinator, server=url)
        self.url = f"https://localhost:{self.federation.gate_port}"
        command(server_app, "federation", *base, "--url", self.url, "--ca", self.federation.tls.ca)
        end = time.monotonic() + 180
        while not listens(port):
            assert time.monotonic() < end
            time.sleep(0.1)
        connect = ["connect", "--dir", coordinator, "--url", url, "--token-file", root / "run.token"]
        assert "none yet" in command(coordinator_app, *connect)
        self.federation.up(seconds=300)

    def server(self, *words):
        return command(server_app, *words, "--dir", self.root / "server")

    def enrol(self, name, policy=None):
        told = json.loads(self.server("invite", "create", "--site", name, "--json"))
        folder, token = self.root / name, self.root / f"{name}.token"
        token.write_text(told["token"])
        SiteFolder.create(folder, policy or SitePolicy(site=name, datasets={}))
        pin = ["--token-file", token, "--ca-fingerprint", told["ca_fingerprint"]]
        command(site_app, "enrol", told["url"], *pin, "--dir", folder)
        return folder

    def admitted(self, *names):
        until(lambda: self.roster().keys() >= set(names), 120, self.federation)

    def roster(self):
        file = self.root / "coordinator" / "roster.json"
        return {s: int(n) for s, n in json.loads(file.read_text()).items()} if file.exists() else {}

    @contextmanager
    def agent(self, name, *more):
        """``medsynx site run`` as a process of its own."""
        run = [sys.executable, "-m", "medsynx", "site", "run", "--dir", str(self.root / name), *more]
        self.supervisor.start(f"agent {name}", run, self.root / f"{name}.log", restart=False)
        try:
            yield self.supervisor.services[f"agent {name}"].process
        finally:
            service = self.supervisor.services.pop(f"agent {name}")
            service.process.send_signal(signal.SIGTERM)
            service.process.wait(60)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    with Supervisor() as supervisor:
        desk = Desk(tmp_path_factory.mktemp("membership"), supervisor)
        for name in ("north", "south", "west"):
            desk.enrol(name)
        desk.admitted("north", "south", "west")
        yield desk


def signed(key, at=None):
    """Flower's headers of a node's request."""
    stamp = (at or datetime.now(UTC)).isoformat()
    return {
        "flwr-public-key": base64.b64encode(public_pem(key.public_key())).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": base64.b64encode(sign_message(key, stamp.encode())).decode(),
    }


class Attacker:
    """Somebody with the CA certificate, outside (at the gate) or, for comparison, on the coordinator's own machine."""

    def __init__(self, federation):
        self.ports = {"gate": federation.gate_port, "private": federation.private_port}
        self.client = httpx.Client(verify=str(federation.tls.ca), timeout=60)

    def post(self, path, message=None, headers=None, port="gate"):
        headers = {**(headers or {}), "content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE}
        content = message.SerializeToString() if message is not None else b""
        return self.client.post(f"https://localhost:{self.ports[port]}{path}", content=content, headers=headers)

    def node(self, path, message, key, port="gate", at=None):
        return self.post(f"/v1/fleet/{path}", message, signed(key, at), port).status_code


@pytest.fixture
def attacker(desk):
    return Attacker(desk.federation)


def key_of(desk, name):
    return read_node_key(desk.root / name / "node.key")


def pull(node):
    return PullMessagesRequest(node=Node(node_id=node))


def test_the_ca_certificate_alone_opens_nothing(desk, attacker, tmp_path):
    paths = {route.path for router in (control, runtime) for route in router.routes}
    assert len(paths) > 40 and {"/v1/control/start-run", "/v1/runtime/acquire-task"} <= paths
    for path in paths:
        assert attacker.post(path).status_code == 403, path
    public = make_node_key(tmp_path / "own")
    own, stranger = read_node_key(tmp_path / "own"), ActivateNodeRequest(public_key=public, heartbeat_interval=30)
    assert attacker.post("/v1/fleet/activate-node", stranger).status_code == 401
    assert attacker.node("activate-node", stranger, own) >= 400
    assert attacker.node("register-node", RegisterNodeFleetRequest(public_key=public), own) >= 400
    before = desk.federation.control.nodes()
    assert public not in before.values()
    # On the coordinator's own machine the ServerApp's task is behind the superexec's secret.
    task = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
    assert attacker.post("/v1/runtime/acquire-task", task, port="private").status_code == 401


def test_another_sites_key_speaks_for_that_site_alone(desk, attacker):
    south, north = key_of(desk, "south"), desk.roster()["north"]
    node = Node(node_id=north)
    requests = {
        "pull-messages": pull(north),
        "push-messages": PushMessagesRequest(node=node, messages_list=[Message()]),
        "send-node-heartbeat": SendNodeHeartbeatRequest(node=node, heartbeat_interval=30),
        "deactivate-node": DeactivateNodeRequest(node_id=north),
        "unregister-node": UnregisterNodeFleetRequest(node_id=north),
    }
    for path, message in requests.items():
        assert attacker.node(path, message, south) == 401, path
    forged = signed(south) | {"flwr-public-key": signed(key_of(desk, "north"))["flwr-public-key"]}
    assert attacker.post("/v1/fleet/pull-messages", pull(north), forged).status_code == 401
    assert attacker.node("pull-messages", pull(desk.roster()["south"]), south) == 200, "its own messages it may have"
    assert set(desk.roster()) >= {"north", "south"}


def test_a_request_is_taken_once(desk, attacker):
    """Flower itself takes it again, for five minutes and with another content: the gate does not."""
    south, node = key_of(desk, "south"), desk.roster()["south"]
    headers = signed(south)
    assert attacker.post("/v1/fleet/pull-messages", pull(node), headers).status_code == 200
    assert attacker.post("/v1/fleet/pull-messages", pull(node), headers).status_code == 401
    beat = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=30)
    assert attacker.post("/v1/fleet/send-node-heartbeat", beat, headers).status_code == 401
    assert attacker.post("/v1/fleet/send-node-heartbeat", beat, headers, port="private").status_code == 200
    two = [("flwr-timestamp", headers["flwr-timestamp"]), ("flwr-timestamp", "2026-01-01T00:00:00+00:00")]
    rest = [(k, v) for k, v in headers.items() if k != "flwr-timestamp"]
    kind = [("content-type", PROTOBUF_MEDIA_TYPE)]
    url = f"{desk.url}/v1/fleet/pull-messages"
    assert (
        attacker.client.post(url, content=pull(node).SerializeToString(), headers=two + rest + kind).status_code == 401
    )
    for seconds in (-400, 60):
        assert (
            attacker.node("pull-messages", pull(node), south, at=datetime.now(UTC) + timedelta(seconds=seconds)) == 401
        )


def test_revoking_or_renewing_one_site_touches_no_other(desk, attacker):
    west, before = key_of(desk, "west"), desk.roster()
    assert attacker.node("pull-messages", pull(before["west"]), west) == 200
    command(site_app, "rotate", "--yes", "--dir", desk.root / "west")
    until(lambda: desk.roster().get("west") not in (None, before["west"]), 120, desk.federation)
    assert attacker.node("pull-messages", pull(before["west"]), west) == 401, "the old key is void"
    west, renewed = key_of(desk, "west"), desk.roster()
    assert attacker.node("pull-messages", pull(renewed["west"]), west) == 200
    assert {s: n for s, n in renewed.items() if s != "west"} == {s: n for s, n in before.items() if s != "west"}
    desk.server("site", "revoke", "west")
    until(lambda: "west" not in desk.roster(), 120, desk.federation)
    activate = ActivateNodeRequest(public_key=public_pem(west.public_key()), heartbeat_interval=30)
    assert attacker.node("pull-messages", pull(renewed["west"]), west) == 401
    assert attacker.node("activate-node", activate, west) >= 400
    assert desk.roster() == {s: n for s, n in before.items() if s != "west"}


def test_an_agent_comes_online_stays_there_and_goes(desk):
    federation, node, log = desk.federation, desk.roster()["north"], desk.root / "north.log"
    with desk.agent("north") as agent:
        until(lambda: node in federation.control.online(), 240, federation)
        until(lambda: last_heard(desk.root / "north"), 60, federation)
        second = CliRunner().invoke(site_app, ["run", "--dir", str(desk.root / "north")])
        assert second.exception.code == "already-running"
        assert f"localhost:{federation.gate_port}" in log.read_text(), "one outbound port"
        agent.send_signal(signal.SIGTERM)
        agent.wait(60)
        assert agent.returncode == 0
    assert node not in federation.control.online(), "it said so, and is not waited for until its heartbeats fail"
    with pytest.raises(ProcessLookupError):
        os.kill(agent.pid, 0)


@pytest.mark.slow
def test_a_copied_folder_cannot_run_beside_the_first(desk):
    """It has the same node key: Flower refuses it while the first is online, and its agent says what that means."""
    federation, node = desk.federation, desk.roster()["north"]
    with desk.agent("north") as agent:
        until(lambda: node in federation.control.online(), 240, federation)
        shutil.copytree(desk.root / "north", desk.root / "copy")
        with desk.agent("copy"):
            until(lambda: "ended" in (desk.root / "copy.log").read_text(), 240, federation)
            assert "the same site runs elsewhere" in (desk.root / "copy.log").read_text()
        assert agent.poll() is None and node in federation.control.online()


@pytest.mark.slow
def test_a_supernode_that_was_killed_comes_back(desk):
    """SIGKILL leaves it counting as online for up to a minute, and Flower refuses a second one meanwhile: the agent tries again."""
    federation, node = desk.federation, desk.roster()["north"]
    with desk.agent("north") as agent:
        until(lambda: node in federation.control.online(), 240, federation)
        began = time.monotonic()
        found = subprocess.run(["pgrep", "-f", f"{desk.root}/north/node.key"], capture_output=True, text=True)
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        until(lambda: node not in federation.control.online(), 240, federation)
        until(lambda: node in federation.control.online(), 240, federation)
        assert agent.poll() is None and "supernode ended" in (desk.root / "north.log").read_text()
        print(f"back after {time.monotonic() - began:.0f} s")


def test_an_agent_ends_when_its_site_leaves(desk):
    federation = desk.federation
    with desk.agent("south") as agent:
        until(lambda: (desk.root / "south" / "logs" / "supernode.log").exists(), 120, federation)
        command(site_app, "leave", "--yes", "--dir", desk.root / "south")
        assert agent.wait(60) == 0 and "left the federation" in (desk.root / "south.log").read_text()
    until(lambda: "south" not in desk.roster(), 120, federation)
    assert "north" in desk.roster()
