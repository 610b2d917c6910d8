"""``medsynx site run``: this hospital's SuperNode and its executor, kept alive by a small supervisor."""

from __future__ import annotations

import hashlib
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from medsynx.errors import MedsynxError
from medsynx.flower_processes import NOT_TAKEN, SITE, flower_env
from medsynx.keys import make_secret, read_secret
from medsynx.logs import printable
from medsynx.processes import Supervisor, alone, free_port
from site_agent.condition import HOME
from site_agent.enrolment import CA, NODE_KEY, SECRET, Enrolment, read_node_key
from site_agent.identity import identity
from site_agent.policy import SiteFolder
from site_agent.pulse import EVERY_SECONDS, LOCK, Pulse

TEND_SECONDS = 1.0
#: the SuperNode has to sign off: three seconds where all is well, and one that could not counts as online, and is let in by nobody, for a minute
SIGN_OFF_SECONDS = 15.0
NOT_LET_IN = "[code: 2004]"  #: Flower's, for a key that is not registered or counts as online already
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
    folder.key(), identity(path)
    if not (path / SECRET).exists():  # it is between this machine's two processes alone
        make_secret(path / SECRET)
    read_secret(path / SECRET)
    with (
        alone(path / LOCK, MedsynxError("already-running", f"the agent of {path} runs already")),
        Supervisor() as supervisor,
    ):
        node = supernode(record.superlink, path / CA, path / NODE_KEY, port, path / SECRET, path / HOME)
        parts = {"executor": executor(path, port, path / SECRET, path / "flower" / "executor"), "supernode": node}
        for name, (command, env) in parts.items():
            term = SIGN_OFF_SECONDS if name == "supernode" else None
            supervisor.start(name, command, path / "logs" / f"{name}.log", env, restart=True, term=term)
        tell(f"site {record.site} runs; outwards to {record.superlink}; logs in {path / 'logs'}")
        key, told = _print(path), dict.fromkeys(parts, 0)
        pulse, seen = Pulse(folder), -EVERY_SECONDS
        while True:
            supervisor.tend()
            if time.monotonic() - seen >= EVERY_SECONDS:
                with suppress(OSError, sqlite3.Error):  # no room: the health check goes stale, the agent goes on
                    pulse.beat(supervisor)
                seen = time.monotonic()
            for name, service in supervisor.services.items():
                if service.died is not None and told[name] == service.restarts:
                    told[name] += 1
                    tell(f"{name} ended ({why(supervisor.tail(name, 20))}); again in {service.pause:.0f} s")
            if Enrolment.of(path).left_at:
                tell(f"site {record.site} has left the federation")
                return
            if (now := _print(path)) != key:
                key = now
                tell("new node key")
                supervisor.services["supernode"].process.terminate()
            time.sleep(TEND_SECONDS)


def why(log: Sequence[str]) -> str:
    """What the last lines of a log say of an end: Flower's reason, where it gives one."""
    ends = [k for k, line in enumerate(log) if "Exit Code:" in line]
    given = log[ends[-1] + 1 :] if ends else log[-1:]
    if any(NOT_LET_IN in line for line in given):
        return "the coordinator does not let this key in: the same site runs elsewhere, was stopped less than a minute ago, or is enrolled no longer"
    if any(NOT_TAKEN in line for line in (given if ends else log)):
        return "the coordinator takes no request of this site: this machine's clock is wrong (`medsynx site preflight`), or its key was shut out"
    # The coordinator's words may be among them, and they are shown on a terminal.
    return printable(" ".join(line.strip() for line in given[:2])[:160]) or "nothing in its log"


def _print(path: Path) -> bytes:
    return hashlib.sha256((path / NODE_KEY).read_bytes()).digest()
