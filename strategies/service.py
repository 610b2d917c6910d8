"""The coordinator's service: its processes and its runs, kept alive by one long-lived process.

What dies is started again: SuperLink and superexec by their supervisor, a ServerApp by the keeper, which starts its run under the same name, so that
it goes on behind its last exchange. If the service itself is killed, everything it started dies with it, and the next one goes on from the folder.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medsynx.bundle import new_key
from medsynx.errors import MedsynxError
from medsynx.keys import private_folder
from medsynx.listening import require_port, require_trust
from medsynx.processes import Supervisor, alone, held
from strategies.certificate import Expiry
from strategies.coordinator import CoordinatorFolder
from strategies.keeper import Keeper
from strategies.presence import Presence
from strategies.registry import Registry
from strategies.runtime import Runtime, Tls

LOCK = "service.lock"
START_SECONDS = 180.0  #: a busy machine takes a minute
TICK_SECONDS = 0.3
STOP_SECONDS = 60.0


def serve(
    folder: Path, tls: Tls, gate: tuple[str, int], tell: Callable[[str], None], private_port: int | None = None
) -> None:
    """Serve until interrupted. With a ``registry.json``, the sites enrolled at its server are the federation.

    Raises:
        MedsynxError: ``coordinator-busy`` when another service has the folder; ``federation-unreachable`` with the end of its log when SuperLink or
            superexec die again and again; ``port-taken`` or ``request-invalid`` at once when it cannot listen with these ports, certificate and key.
    """
    coordinator = CoordinatorFolder(folder)
    with only(folder), Supervisor() as supervisor:
        require_trust(tls.cert, tls.key, tls.ca, "127.0.0.1")  # where its own parts reach the SuperLink
        for place in (gate, ("127.0.0.1", private_port or 0)):
            require_port(*place)
        if not (folder / "signing.pem").exists():
            new_key(folder / "signing.pem")
        registry = Registry.configured(folder / "registry.json")
        if not registry.url:
            tell("no server is named, so no hospital can enrol: run `medsynx coordinator connect`, then serve again")
        server = (registry.url, Path(registry.ca) if registry.ca else None) if registry.url else None
        runtime = Runtime(supervisor, folder, folder / "service", tls, gate, private_port, server)
        keeper, until = Keeper(coordinator, runtime.control), time.monotonic() + START_SECONDS
        runtime.start()
        while not runtime.ready():
            check(supervisor)
            if time.monotonic() > until:
                raise MedsynxError(
                    "federation-unreachable", "the SuperLink is not ready", details=supervisor.tail("superlink")
                )
            time.sleep(TICK_SECONDS)
        tell(f"ready: hospitals reach {gate[0]}:{gate[1]}")
        presence, expiry = Presence(folder, runtime.control), Expiry(folder, tls)
        while True:
            check(supervisor)
            keeper.tend()
            presence.tend()
            expiry.tend()
            time.sleep(TICK_SECONDS)


def check(supervisor: Supervisor) -> None:
    """Restart what is to be restarted; raise ``federation-unreachable`` when something that must live has ended for good."""
    supervisor.tend()
    for name in supervisor.ended():
        raise MedsynxError("federation-unreachable", f"{name} ended", details=supervisor.tail(name))


@contextmanager
def only(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder, which is its owner's alone. Raises ``coordinator-busy``."""
    private_folder(folder)
    with alone(folder / LOCK, MedsynxError("coordinator-busy", f"a coordinator serves {folder} already")):
        yield


def require_service(folder: Path) -> None:
    """Raise ``coordinator-down`` when no service has this folder. Makes nothing, and is in nobody's way who asks the same."""
    if not held(folder / LOCK):
        raise MedsynxError("coordinator-down", f"no coordinator serves {folder}")


def follow(folder: CoordinatorFolder, name: str, watch: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Wait for a run's end and return its result.

    Raises:
        MedsynxError: the run's own code and message when it failed; ``coordinator-down`` when nobody serves the folder any more.
    """
    while (result := folder.result(name)) is None:
        require_service(folder.path)
        if progress := folder.progress(name):
            watch(progress)
        time.sleep(TICK_SECONDS)
    if result["status"] != "finished":
        raise MedsynxError(result["code"], result["message"])
    return result


def stop(folder: CoordinatorFolder, name: str) -> None:
    """Stop a run and wait until it has.

    Raises:
        MedsynxError: ``not-found`` for a run that nobody asked for or that ended; ``coordinator-down``.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", name) or name not in folder.open_runs():
        raise MedsynxError("not-found", f"no run {name} is going on", hint="Run `medsynx coordinator runs --dir DIR`.")
    (folder.run(name) / "stop").touch()
    until = time.monotonic() + STOP_SECONDS
    while folder.result(name) is None:
        require_service(folder.path)
        if time.monotonic() > until:
            raise MedsynxError("coordinator-failed", f"run {name} does not stop")
        time.sleep(TICK_SECONDS)
