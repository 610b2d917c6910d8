"""A federation of real processes for tests of faults: who is who among them, and what the books say afterwards."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from evaluation.programme import priced_plan
from medsynx.bundle import new_key
from medsynx.processes import Supervisor
from medsynx.study import Study
from onehost.federation import LocalFederation
from onehost.hospitals import introduce
from site_agent.audit import Audit
from site_agent.ledger import Ledger
from site_agent.policy import SiteFolder
from strategies.coordinator import CoordinatorFolder
from tests.conftest import small_table
from tests.helpers import make_site


class Field:
    """A federation that is up.

    Args:
        folder: everything goes here.
        study, more: approved at every site.
        rows: of each site's table; a larger one makes its steps slower.
        federation: how its parts are connected.
    """

    def __init__(
        self,
        folder: Path,
        supervisor: Supervisor,
        study: Study,
        rows: dict[str, int],
        *more: Study,
        federation: type[LocalFederation] = LocalFederation,
    ) -> None:
        self.study, self.sites = study, {name: folder / "sites" / name for name in rows}
        limits = {"epsilon_lifetime": 100, "trust": ("local", "secure-sum")}
        for number, (name, count) in enumerate(rows.items()):
            make_site(self.sites[name], study, small_table(count, number), name=name, approve=False, **limits)
        introduce(self.sites)
        for site in self.sites.values():
            for each in (study, *more):
                SiteFolder(site).approve(each, "table")
        self.coordinator = CoordinatorFolder(folder / "coordinator")
        self.coordinator.add_study(study)
        new_key(self.coordinator.path / "signing.pem")
        self.federation = federation(supervisor, folder / "federation", self.sites, self.coordinator.path)
        self.federation.up(seconds=max(300.0, 45.0 * len(rows)))

    def ask(self, run: str, study: Study | None = None) -> None:
        """Ask for a run."""
        self.coordinator.ask(study or self.study, run)

    def until(self, what: Callable[[], Any], seconds: float = 180) -> Any:
        """Tend the federation until something is so; returns it."""
        end = time.monotonic() + seconds
        while not (found := what()):
            assert time.monotonic() < end, f"not within {seconds} s"
            self.federation.check()
            time.sleep(0.02)
        return found

    def result(self, run: str, seconds: float = 400) -> dict[str, Any]:
        """How a run ended."""
        return self.until(lambda: self.coordinator.result(run), seconds)

    def online(self, *sites: str, seconds: float = 240) -> None:
        """Wait for sites to count as online."""
        wanted = {self.federation.nodes[s] for s in sites or self.sites}
        self.until(lambda: self.there() >= wanted, seconds)

    def there(self) -> set[int]:
        """Nodes that count as online; none while the SuperLink is away."""
        try:
            return self.federation.control.online()
        except httpx.HTTPError:
            return set()

    def at(self, run: str, step: str) -> Callable[[], bool]:
        """Whether a step of a run is being asked (or is over)."""
        names = [s.step.name for s in priced_plan(self.study).steps]

        def reached() -> bool:
            progress = self.coordinator.progress(run) or {}
            return progress.get("message") in names[names.index(step) :] and progress["status"] == "running"

        return reached

    @contextmanager
    def waiting(self, site: str) -> Iterator[None]:
        """A site's tasks wait for their turn meanwhile, as behind another one: none has read or charged anything."""
        with (self.sites[site] / "executor.lock").open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            yield

    @contextmanager
    def second_step(self, run: str, site: str) -> Iterator[None]:
        """Ask for a run that stands in its second step meanwhile, however slow this machine is: the others have answered, ``site`` has not."""
        first, second = self.steps()[:2]
        with self.waiting(site):
            self.ask(run)
            self.caught(site, worker=True, seconds=180)
            assert not self.left(site, run)
            executor = self.pid(f"executor {site}")
            os.kill(executor, signal.SIGSTOP)  # its child goes on with the first step; it takes up no other
        try:
            self.until(self.at(run, second))
            self.until(lambda: all(second in self.left(s, run) for s in self.sites if s != site))
            assert self.left(site, run) == [first]
            yield
        finally:
            os.kill(executor, signal.SIGCONT)

    def pid(self, service: str) -> int:
        return self.federation.supervisor.pids()[service]

    def children(self, site: str) -> list[int]:
        """The processes that answer tasks at a site."""
        return children_of(self.federation.supervisor.pids().get(f"executor {site}"))

    def idle(self, *sites: str) -> None:
        """Wait until sites have no task left, of whatever run."""
        self.until(lambda: not [child for site in sites or self.sites for child in self.children(site)])

    def caught(self, site: str, *, worker: bool = False, seconds: float = 60) -> int:
        """Such a process, or the ``worker`` of one, as soon as there is one; between looks the federation is tended as it always is."""
        end, tended = time.monotonic() + seconds, time.monotonic()
        while not (found := self._caught(site, worker)):
            assert time.monotonic() < end, "no task came"
            if time.monotonic() - tended > 1:
                self.federation.check()
                tended = time.monotonic()
            time.sleep(0.002)
        return found[0]

    def _caught(self, site: str, worker: bool) -> list[int]:
        children = self.children(site)
        return [w for child in children for w in children_of(child)] if worker else children

    def server_app(self, run: str) -> int | None:
        """The process that conducts a run, once it does."""
        from strategies.lock import holder

        told, living = holder(self.coordinator.run(run))
        return int(told["pid"]) if told and living else None

    def charged(self, site: str, run: str) -> list[str]:
        """Steps of a run that a site's ledger charged, in order."""
        entries = Ledger(self.sites[site] / "ledger.sqlite").chain.entries()
        return [e["step"] for e in entries if e["kind"] == "reserve" and e["run"] == run]

    def left(self, site: str, run: str, kind: str = "released") -> list[str]:
        """Steps of a run whose cargo left a site (or what else the audit log says)."""
        entries = Audit(self.sites[site] / "audit.sqlite").chain.entries()
        return [e["step"] for e in entries if e["kind"] == kind and e["run"] == run]

    def entries(self, site: str, run: str, kind: str, exchange: str | None) -> list[dict[str, Any]]:
        """What a site's audit log says of a run, of this kind and exchange."""
        entries = Audit(self.sites[site] / "audit.sqlite").chain.entries()
        return [e for e in entries if (e["kind"], e.get("run"), e.get("exchange")) == (kind, run, exchange)]

    def rounds(self, run: str) -> list[dict[str, Any]]:
        """Every round of a finished run, as its bundle records it."""
        return json.loads((self.coordinator.run(run) / "evaluation.json").read_text())["rounds"]

    def steps(self) -> list[str]:
        return [s.step.name for s in priced_plan(self.study).steps]

    def settled(self, run: str) -> None:
        """The books agree: nothing left a site uncharged, and no step was charged twice."""
        for site in self.sites:
            charged = self.charged(site, run)
            assert len(charged) == len(set(charged)) and set(self.left(site, run)) <= set(charged)


def children_of(pid: int | None) -> list[int]:
    """The children of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] if pid else []
    except OSError:
        return []


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def gone(pid: int) -> bool:
    """Whether a process is no more, or only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@contextmanager
def stopped(*pids: int):
    """Processes that do not move meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
