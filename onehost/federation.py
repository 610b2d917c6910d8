"""The deployed runtime on one machine, over loopback and TLS, each part a process of its own.

::

    SuperLink (loopback) + gate (TLS, fleet endpoints only) <--- one SuperNode a hospital (own key) <--- its site executor
        ^-- superexec -> ServerApp
"""

from __future__ import annotations

import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from medsynx.errors import MedsynxError
from medsynx.flower_processes import flower_env, script
from medsynx.keys import make_node_key, make_secret
from medsynx.processes import Supervisor, free_port
from onehost.certificates import Tls, make_tls
from site_agent.run import executor, supernode
from strategies.control import Control
from strategies.server_app import COORDINATOR
from strategies.superlink import GATE_CERT, GATE_HOST, GATE_KEY, GATE_PORT, GATE_SERVER, GATE_SERVER_CA

START_SECONDS = 90.0


class LocalFederation:
    """SuperLink, gate, superexec, and a SuperNode with its executor for each site.

    Args:
        supervisor: owns the processes.
        folder: keys, databases and logs go here.
        sites: site name -> site folder.
        coordinator: the coordinator's folder; gets ``roster.json``.
        server: base URL of a REST server on this machine. The gate passes enrolment on to it, and the SuperLink's nodes follow its list of sites
            (``registry.json`` of the coordinator's folder says how it is asked); ``sites`` is empty then, since they enrol and run themselves.
    """

    def __init__(
        self, supervisor: Supervisor, folder: Path, sites: dict[str, Path], coordinator: Path, server: str | None = None
    ) -> None:
        self.server = server
        self.supervisor, self.folder, self.sites, self.coordinator = (
            supervisor,
            folder.resolve(),
            sites,
            coordinator.resolve(),
        )
        self.tls: Tls = make_tls(self.folder / "tls")
        self.private_port, self.gate_port = free_port(), free_port()
        self.control = Control(f"127.0.0.1:{self.private_port}", self.tls.ca)
        self.nodes: dict[str, int] = {}
        self.ports: dict[str, int] = {}  # each site's SuperNode serves its executor here

    def up(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """Start everything and wait until every site is online.

        Raises:
            MedsynxError: ``federation-unreachable`` with the end of the log of what failed.
        """
        until = time.monotonic() + START_SECONDS
        tell("starting the SuperLink")
        self._start_coordinator()
        for name in self.sites:
            self._start_executor(name)
        self._wait(lambda: answers(f"https://127.0.0.1:{self.private_port}/health", self.tls.ca), until, "superlink")
        if self.server:
            self._start_members()
            return
        tell("registering the hospitals")
        for name in self.sites:
            self.nodes[name] = self.control.register(name, make_node_key(self.folder / "keys" / name))
        roster = self.coordinator / "roster.json"
        roster.write_text(json.dumps({name: str(node) for name, node in self.nodes.items()}), "utf-8")
        for name in self.sites:
            self._start_supernode(name)
        tell("waiting for the hospitals")
        self._wait(
            lambda: self.control.online() >= set(self.nodes.values()), until, *(f"supernode {n}" for n in self.sites)
        )

    def start(self, study_digest: str, run: str) -> int:
        """Start a run; returns Flower's id of it."""
        return self.control.start(study_digest, run)

    def check(self) -> None:
        """Restart what is to be restarted; raise ``federation-unreachable`` when something that must live has ended."""
        self.supervisor.tend()
        for name in self.supervisor.ended():
            raise MedsynxError("federation-unreachable", f"{name} ended", details=self.supervisor.tail(name))

    def _wait(self, ready: Callable[[], bool], until: float, *watched: str) -> None:
        while not ready():
            self.check()
            if time.monotonic() > until:
                details = [line for name in watched for line in self.supervisor.tail(name)]
                raise MedsynxError("federation-unreachable", f"{', '.join(watched)} not ready in time", details=details)
            time.sleep(0.2)

    def _env(self, home: str, **more: str) -> dict[str, str]:
        return flower_env(self.folder / "flwr" / home, **more)

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name.replace(' ', '-')}.log"

    def _start_coordinator(self) -> None:
        secret, tls = make_secret(self.folder / "keys" / "superexec.secret"), self.tls
        link = [sys.executable, "-m", "strategies.superlink", "--host", "127.0.0.1", "--port", str(self.private_port)]
        link += ["--ssl-ca-certfile", str(tls.ca), "--ssl-certfile", str(tls.cert), "--ssl-keyfile", str(tls.key)]
        link += [
            "--enable-supernode-auth",
            "--database",
            str(self.folder / "superlink.sqlite"),
            "--isolation",
            "process",
        ]
        link += ["--superexec-auth-secret-file", str(secret), "--disable-runtime-dependency-installation"]
        gate = {
            GATE_HOST: "127.0.0.1",
            GATE_PORT: str(self.gate_port),
            GATE_CERT: str(tls.cert),
            GATE_KEY: str(tls.key),
            **({GATE_SERVER: self.server, GATE_SERVER_CA: str(tls.ca)} if self.server else {}),
        }
        self.supervisor.start("superlink", link, self._log("superlink"), self._env("superlink", **gate))
        execute = [
            script("flower-superexec"),
            "--runtime-api-address",
            f"127.0.0.1:{self.private_port}",
        ]
        execute += ["--root-certificates", str(tls.ca), "--superexec-auth-secret-file", str(secret)]
        env = self._env("superexec", **{COORDINATOR: str(self.coordinator)})
        self.supervisor.start("superexec", execute, self._log("superexec"), env)

    def _start_members(self) -> None:
        command = [sys.executable, "-m", "strategies.members", "--dir", str(self.coordinator)]
        command += ["--superlink", f"127.0.0.1:{self.private_port}", "--ca", str(self.tls.ca)]
        self.supervisor.start("members", command, self._log("members"), restart=True)

    def _start_executor(self, name: str) -> None:
        port, home = self.ports.setdefault(name, free_port()), self.folder / "flwr" / f"executor-{name}"
        secret = make_secret(self.folder / "keys" / f"{name}.secret")
        command, env = executor(self.sites[name].resolve(), port, secret, home)
        self.supervisor.start(f"executor {name}", command, self._log(f"executor {name}"), env, restart=True)

    def _start_supernode(self, name: str) -> None:
        keys, home = self.folder / "keys", self.folder / "flwr" / f"supernode-{name}"
        gate, port = f"127.0.0.1:{self.gate_port}", self.ports[name]
        command, env = supernode(gate, self.tls.ca, keys / name, port, keys / f"{name}.secret", home)
        self.supervisor.start(f"supernode {name}", command, self._log(f"supernode {name}"), env, restart=True)


def answers(url: str, ca: Path) -> bool:
    """Whether an HTTPS address answers 200 under this CA."""
    context = ssl.create_default_context(cafile=str(ca))
    try:
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
