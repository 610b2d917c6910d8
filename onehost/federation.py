"""The deployed runtime on one machine, over loopback and TLS, each part a process of its own.

::

    SuperLink (loopback) + gate (TLS, fleet endpoints only) <--- one SuperNode a hospital (own key) <--- its site executor
        ^-- superexec -> ServerApp
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from medsynx.errors import MedsynxError
from medsynx.keys import make_node_key, make_secret
from medsynx.processes import Supervisor, free_port
from onehost.certificates import make_tls
from site_agent.run import executor, supernode
from strategies.coordinator import CoordinatorFolder
from strategies.keeper import Keeper
from strategies.runtime import Runtime
from strategies.service import START_SECONDS, check


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
        self.supervisor, self.folder, self.sites, self.coordinator = (
            supervisor,
            folder.resolve(),
            sites,
            coordinator.resolve(),
        )
        self.tls, self.gate_port = make_tls(self.folder / "tls"), free_port()
        gate, behind = ("127.0.0.1", self.gate_port), (server, self.tls.ca) if server else None
        self.runtime = Runtime(supervisor, self.coordinator, self.folder, self.tls, gate, server=behind)
        self.control, self.private_port = self.runtime.control, self.runtime.private_port
        self.runs = CoordinatorFolder(self.coordinator)
        self.keeper = Keeper(self.runs, self.control)
        self.nodes: dict[str, int] = {}
        self.ports: dict[str, int] = {}  # each site's SuperNode serves its executor here

    def up(self, tell: Callable[[str], None] = lambda text: None, seconds: float = START_SECONDS) -> None:
        """Start everything and wait until every site is online, no longer than so many seconds.

        Raises:
            MedsynxError: ``federation-unreachable`` with the end of the log of what failed.
        """
        until = time.monotonic() + seconds
        tell("starting the SuperLink")
        self.runtime.start()
        for name in self.sites:
            self._start_executor(name)
        self._wait(self.runtime.ready, until, "superlink")
        if self.runtime.server:
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

    def start(self, study_digest: str, run: str) -> None:
        """Ask for a run; :meth:`check` starts it and keeps it going."""
        self.runs.ask(self.runs.study(study_digest), run)

    def check(self) -> None:
        """To be called now and then: restart what died, tend the runs; ``federation-unreachable`` when something has ended for good."""
        check(self.supervisor)
        self.keeper.tend()

    def _wait(self, ready: Callable[[], bool], until: float, *watched: str) -> None:
        while not ready():
            check(self.supervisor)
            if time.monotonic() > until:
                details = [line for name in watched for line in self.supervisor.tail(name)]
                raise MedsynxError("federation-unreachable", f"{', '.join(watched)} not ready in time", details=details)
            time.sleep(0.2)

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name.replace(' ', '-')}.log"

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
