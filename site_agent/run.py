"""``medsynx site run``: this hospital's SuperNode and its executor, kept alive by a small supervisor."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from medsynx.errors import MedsynxError
from medsynx.flower_processes import SITE, flower_env
from medsynx.processes import Supervisor, alone, free_port
from site_agent.enrolment import CA, NODE_KEY, SECRET, Enrolment, read_node_key
from site_agent.policy import SiteFolder
from site_agent.pulse import EVERY_SECONDS, beat

TEND_SECONDS = 1.0
Started = tuple[list[str], dict[str, str]]  #: command and environment


def executor(site: Path, port: int, secret: Path, home: Path) -> Started:
    """The process that answers this site's tasks, taken from the SuperNode on loopback ``port``."""
    command = [sys.executable, "-m", "site_agent.executor", "--dir", str(site)]
    command += ["--runtime-api-address", f"127.0.0.1:{port}", "--secret-file", str(secret)]
    return command, flower_env(home, **{SITE: str(site)})


def supernode(superlink: str, ca: Path, key: Path, port: int, secret: Path, home: Path) -> Started:
    """The process that speaks to the federation: outwards only, and with its executor on loopback ``port``."""
    command = [sys.executable, "-m", "site_agent.supernode", "--superlink", superlink, "--root-certificates", str(ca)]
    command += ["--auth-supernode-private-key", str(key), "--port", str(port), "--isolation", "process"]
    return [*command, "--superexec-auth-secret-file", str(secret)], flower_env(home)


def run(folder: SiteFolder, tell: Callable[[str], None]) -> None:
    """Run until an interrupt, or until the site leaves its federation. New keys (``medsynx site rotate``) are taken up on the way.

    Raises:
        MedsynxError: ``not-enrolled``, ``key-exposed``, ``policy-refused``, ``already-running``.
    """
    path = folder.path.resolve()
    folder.policy()
    record, port = Enrolment.present(path), free_port()
    read_node_key(path / NODE_KEY)
    with (
        alone(path / "run.lock", MedsynxError("already-running", f"the agent of {path} runs already")),
        Supervisor() as supervisor,
    ):
        node = supernode(
            record.superlink, path / CA, path / NODE_KEY, port, path / SECRET, path / "flower" / "supernode"
        )
        parts = {"executor": executor(path, port, path / SECRET, path / "flower" / "executor"), "supernode": node}
        for name, (command, env) in parts.items():
            supervisor.start(name, command, path / "logs" / f"{name}.log", env, restart=True)
        tell(f"site {record.site} runs; outwards to {record.superlink}; logs in {path / 'logs'}")
        key, told = _print(path), dict.fromkeys(parts, 0)
        seen = -EVERY_SECONDS
        while True:
            supervisor.tend()
            if time.monotonic() - seen >= EVERY_SECONDS:
                with suppress(OSError):  # no room: the health check goes stale, the agent goes on
                    beat(path, supervisor)
                seen = time.monotonic()
            for name, service in supervisor.services.items():
                if service.died is not None and told[name] == service.restarts:
                    told[name] += 1
                    last = (supervisor.tail(name, 1) or ["nothing in its log"])[0]
                    tell(f"{name} ended ({last.strip()[:160]}); again in {service.pause:.0f} s")
            if Enrolment.of(path).left_at:
                tell(f"site {record.site} has left the federation")
                return
            if (now := _print(path)) != key:
                key = now
                tell("new node key")
                supervisor.services["supernode"].process.terminate()
            time.sleep(TEND_SECONDS)


def _print(path: Path) -> bytes:
    return hashlib.sha256((path / NODE_KEY).read_bytes()).digest()
