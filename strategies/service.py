"""The coordinator's service: its processes and its runs, kept alive by one long-lived process.

What dies is started again: SuperLink and superexec by their supervisor, a ServerApp by the keeper, which starts its run under the same name, so that
it goes on behind its last exchange. If the service itself is killed, everything it started dies with it, and the next one goes on from the folder.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medsynx.bundle import new_key
from medsynx.errors import MedsynxError
from medsynx.keys import private_folder
from medsynx.processes import Supervisor, alone
from strategies.coordinator import CoordinatorFolder
from strategies.keeper import Keeper
from strategies.presence import Presence
from strategies.registry import Registry
from strategies.runtime import Runtime, Tls

START_SECONDS = 90.0
TICK_SECONDS = 0.3
STOP_SECONDS = 60.0


def serve(
    folder: Path, tls: Tls, gate: tuple[str, int], tell: Callable[[str], None], private_port: int | None = None
) -> None:
    """Serve until interrupted. With a ``registry.json``, the sites enrolled at its server are the federation.

    Raises:
        MedsynxError: ``coordinator-busy`` when another service has the folder; ``federation-unreachable`` with the end of its log when SuperLink or
            superexec die again and again, or at once when the gate's port is taken.
    """
    coordinator = CoordinatorFolder(folder)
    with only(folder), Supervisor() as supervisor:
        require_port(*gate)
        if not (folder / "signing.pem").exists():
            new_key(folder / "signing.pem")
        registry = Registry.configured(folder / "registry.json")
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
        presence = Presence(folder, runtime.control)
        while True:
            check(supervisor)
            keeper.tend()
            presence.tend()
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
    with alone(folder / "service.lock", MedsynxError("coordinator-busy", f"a coordinator serves {folder} already")):
        yield


def require_port(host: str, port: int) -> None:
    """Raise ``federation-unreachable`` when this machine cannot listen there."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as servers do: a connection that just ended is in nobody's way
            probe.bind(place)
    except OSError as error:
        raise MedsynxError(
            "federation-unreachable",
            f"nothing can listen on {host}:{port}: {error.strerror}",
            hint="Stop what has this port, or give another --host or --port.",
        ) from None


def require_service(folder: Path) -> None:
    """Raise ``coordinator-down`` when no service has this folder."""
    try:
        with only(folder):
            pass
    except MedsynxError:
        return
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
