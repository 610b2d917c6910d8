"""A site that dies at any of its writes never refunds, never charges twice, and goes on when it is started again.

A forked child runs a whole step (admit, compute, release, settle, keep) and kills itself at its n-th write: before or after an SQL statement that
changes something, an fsync, a truncation or a rename, or in the middle of a write to a file. Every n there is gets its turn.
"""

import os
import shutil
import signal
import sqlite3

import numpy as np
import pytest

from evaluation.programme import priced_plan
from medsynx.generators import get_family
from medsynx.generators.base import Contribution, State
from medsynx.privacy import epsilon_of_parts
from medsynx.wire import Request
from site_agent.door import Door
from site_agent.policy import SiteFolder
from site_agent.service import SiteService
from tests.conftest import small_table
from tests.helpers import make_site

#: To die at these is to die after the write before; the marks of patients are so many rows of one transaction.
SKIPPED = ("PRAGMA", "SELECT", "CREATE", "INSERT OR IGNORE INTO MARK")


class Deaths:
    """Counts this process's writes and kills it at the ``when``-th."""

    def __init__(self, when: int) -> None:
        self.when, self.count = when, 0

    def tick(self) -> bool:
        self.count += 1
        return self.count == self.when

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def statement(self, sql: str) -> None:
        if not sql.lstrip().upper().startswith(SKIPPED) and self.tick():
            self.die()

    def around(self, real):
        def call(*args, **how):
            if self.tick():
                self.die()
            result = real(*args, **how)
            if self.tick():
                self.die()
            return result

        return call

    def install(self) -> None:
        connect, write = sqlite3.connect, os.write

        def traced(*args, **how):
            db = connect(*args, **how)
            db.set_trace_callback(self.statement)
            return db

        def torn(file, data):
            if self.tick():
                write(file, bytes(data)[: len(data) // 2])
                self.die()
            return write(file, data)

        sqlite3.connect, os.write = traced, torn
        for name in ("fsync", "replace", "ftruncate"):
            setattr(os, name, self.around(getattr(os, name)))


class Keeping:
    """The study's family, with something to keep at the site."""

    def __init__(self, family) -> None:
        self.family = family

    def contribute(self, *args) -> Contribution:
        return Contribution(self.family.contribute(*args).arrays, keep={"weights": np.arange(1000.0)})


def ask(folder, study, run):
    return SiteService(SiteFolder(folder)).answer(Request(run, study.digest, "tables", State()))


def child_step(folder, study, when: int) -> bool:
    """A step in a child that dies at its ``when``-th write; whether it lived to the end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Deaths(when).install()
            code = 0 if ask(folder, study, "run-1").refusal is None else 2
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0, "a step that is not killed is answered"
    return True


@pytest.mark.parametrize("fresh", [True, False], ids=["first-step", "later-step"])
def test_death_at_every_write_neither_refunds_nor_charges_twice(tmp_path, study, monkeypatch, fresh):
    family = Keeping(get_family("marginals"))
    monkeypatch.setattr("site_agent.service.get_family", lambda name: family)
    first = tmp_path / "first"
    make_site(first, study, small_table(60, 1), epsilon_lifetime=1000)
    before = 0 if fresh else 1
    if not fresh:
        assert ask(first, study, "run-0").refusal is None
    priced = priced_plan(study).find("tables")
    price = [epsilon_of_parts([(priced.step.part, priced.event)] * k, 1e-5) for k in range(5)]
    shutil.copytree(first, tmp_path / "warm")
    for run in ("run-1", "run-2", "run-1"):  # the accounting of what is to come, which forked children then inherit
        ask(tmp_path / "warm", study, run)
    charged, lived, when = [], False, 0
    while not lived:
        when += 1
        folder = tmp_path / str(when)
        shutil.copytree(first, folder)
        lived = child_step(folder, study, when)
        door = Door(SiteFolder(folder))
        mine = [e for e in door.ledger.chain.entries() if e["run"] == "run-1"]
        kinds = [e["kind"] for e in mine]
        left = [e for e in door.audit.chain.entries() if e["kind"] == "released" and e["run"] == "run-1"]
        assert kinds in ([], ["reserve"], ["reserve", "settle"]), when
        assert len(left) <= len(kinds), "nothing leaves that is not charged"
        assert not (kinds[1:] and not left), "nothing is settled that is not in the audit log"
        assert door.ledger.spent("table", 1e-5) == pytest.approx(price[before + len(kinds[:1])])
        charged.append(len(kinds[:1]))
        for kept in (folder / "runs").glob("run-1.*.npz"):
            assert np.load(kept)["weights"].shape == (1000,)
        # the next start
        again, other = ask(folder, study, "run-1"), ask(folder, study, "run-2")
        assert other.refusal is None, when
        reserved = [e for e in door.ledger.chain.entries() if e["kind"] == "reserve" and e["run"] == "run-1"]
        assert len(reserved) == 1 and (again.refusal is None or charged[-1]), "charged once, or not yet"
        assert door.ledger.spent("table", 1e-5) == pytest.approx(price[before + 2])
        for chain in (door.ledger.chain, door.audit.chain):
            copied, sound = chain.witness.rows()
            assert sound and not chain.behind_witness() and len(copied) == len(chain.entries())
        shutil.rmtree(folder)
    assert charged == sorted(charged) and charged[0] == 0 and charged[-1] == 1, "once charged, for good"
    assert when > 20, "every write was hooked"
