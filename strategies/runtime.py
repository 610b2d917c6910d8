"""The coordinator's own processes: the SuperLink behind its gate, and the superexec that starts a ServerApp for each run.

All state of Flower's lies in one SQLite file, so that a SuperLink that was killed goes on where it was: sites and a running ServerApp ask it again
until it is back.
"""

from __future__ import annotations

import ssl
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from medsynx.flower_processes import flower_env, script
from medsynx.keys import make_secret, private_folder
from medsynx.processes import Supervisor, free_port
from strategies.control import Control
from strategies.server_app import COORDINATOR
from strategies.superlink import GATE_CERT, GATE_HOST, GATE_KEY, GATE_PORT, GATE_SERVER, GATE_SERVER_CA

BACK_SECONDS = 0.5  #: pause before SuperLink or superexec is started again
GIVE_UP = 5  #: short lives in a row after which they are not

ANY_ADDRESS = ("0.0.0.0", "::", "")


@dataclass(frozen=True)
class Tls:
    """PEM files: who signed the server's certificate, the certificate (for 127.0.0.1 too), its key."""

    ca: Path
    cert: Path
    key: Path


class Runtime:
    """SuperLink, gate and superexec of one coordinator.

    Args:
        supervisor: owns the processes.
        coordinator: the coordinator's folder.
        folder: Flower's database, keys and logs go here.
        gate: host and port that hospitals reach.
        private_port: of the whole API, on loopback; a free one when omitted.
        server: base URL and CA (None: one of the system's) of the REST server whose enrolled sites are the SuperLink's nodes; the gate passes
            enrolment on to it. Without one, nodes are registered by hand.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        coordinator: Path,
        folder: Path,
        tls: Tls,
        gate: tuple[str, int],
        private_port: int | None = None,
        server: tuple[str, Path | None] | None = None,
    ) -> None:
        self.server = server
        self.supervisor, self.coordinator, self.folder = supervisor, coordinator.resolve(), folder.resolve()
        self.tls, self.gate, self.private_port = tls, gate, private_port or free_port()
        self.control = Control(f"127.0.0.1:{self.private_port}", tls.ca)

    def start(self) -> None:
        """Start all of it; :meth:`ready` says when it can be asked."""
        private_folder(self.folder)
        secret, tls = make_secret(self.folder / "keys" / "superexec.secret"), self.tls
        link = [sys.executable, "-m", "strategies.superlink", "--host", "127.0.0.1", "--port", str(self.private_port)]
        link += ["--ssl-ca-certfile", str(tls.ca), "--ssl-certfile", str(tls.cert), "--ssl-keyfile", str(tls.key)]
        link += ["--enable-supernode-auth", "--database", str(self.folder / "superlink.sqlite")]
        link += ["--isolation", "process", "--superexec-auth-secret-file", str(secret)]
        link += ["--disable-runtime-dependency-installation"]
        host, port = self.gate
        gate = {GATE_HOST: host, GATE_PORT: str(port), GATE_CERT: str(tls.cert), GATE_KEY: str(tls.key)}
        if self.server:
            url, ca = self.server
            gate |= {GATE_SERVER: url, **({GATE_SERVER_CA: str(ca)} if ca else {})}
        self._start("superlink", link, gate)
        execute = [script("flower-superexec"), "--runtime-api-address", f"127.0.0.1:{self.private_port}"]
        execute += ["--root-certificates", str(tls.ca), "--superexec-auth-secret-file", str(secret)]
        self._start("superexec", execute, {COORDINATOR: str(self.coordinator)})
        if self.server:
            members = [sys.executable, "-m", "strategies.members", "--dir", str(self.coordinator)]
            members += ["--superlink", f"127.0.0.1:{self.private_port}", "--ca", str(tls.ca)]
            self._start("members", members, {})

    def ready(self) -> bool:
        """Whether the SuperLink answers, on loopback and behind its gate."""
        host, port = self.gate
        public = f"https://{'localhost' if host in ANY_ADDRESS else host}:{port}/health"
        private = f"https://127.0.0.1:{self.private_port}/health"
        # hospitals may know the gate's address by another name than this machine, and the certificate is for theirs
        return answers(private, self.tls.ca) and answers(public, self.tls.ca, by_name=False)

    def _start(self, name: str, command: list[str], env: dict[str, str]) -> None:
        log = self.folder / "logs" / f"{name}.log"
        env = flower_env(self.folder / "flwr" / name, **env)
        self.supervisor.start(name, command, log, env, restart=True, pause=BACK_SECONDS, give_up=GIVE_UP)


def answers(url: str, ca: Path, *, by_name: bool = True) -> bool:
    """Whether an HTTPS address answers 200 under this CA; with ``by_name`` its certificate must be for the address's name."""
    context = ssl.create_default_context(cafile=str(ca))
    context.check_hostname = by_name
    # no proxy of the environment: this machine asks itself
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
