"""Who is in which data set, as keyed names that never leave: what holds a data set to its word that its patients are in no other (``apart``).

Noted before a data set is first computed on, whether or not any is ``apart``, so that the word can be checked later too. Names are HMACs under the
site's key; patients are compared by their ids, and records that carry none by their whole content.

The book's second copy is a digest of it in the ledger, and so in the ledger's witness: who were noted and are in the book no more could get a second
budget in a data set that is ``apart``, so such a data set is refused while the two differ. All others spend one budget whoever they hold.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path

from medsynx.errors import MedsynxError
from site_agent.chain import Chain
from site_agent.database import create, opened
from site_agent.ingest import Marks

#: Two people may have equal records. More of the smaller data set than this, and they are taken for the same people.
CHANCE = 0.05
SCHEMA = """
CREATE TABLE IF NOT EXISTS mark (dataset TEXT, name BLOB, kind TEXT, PRIMARY KEY (dataset, name)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_name ON mark (name);
"""


class PatientBook:
    """One file a site (0600).

    Args:
        path: created when absent.
        ledger: where a digest of it is kept.
    """

    def __init__(self, path: Path, ledger: Chain) -> None:
        self.path, self.ledger = path, ledger
        if not path.exists():
            create(path)
        with self._open() as db:
            db.executescript(SCHEMA)

    def note(self, dataset: str, marks: Marks) -> None:
        """Remember that these patients are, or once were, in the data set."""
        rows = [(dataset, n, "id") for n in marks.ids] + [(dataset, n, "record") for n in marks.records]
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            known, before = self._known().get(dataset), _digest(db, dataset)
            db.executemany("INSERT OR IGNORE INTO mark VALUES (?, ?, ?)", rows)
            after = _digest(db, dataset)
            # Over a book that lacks somebody nothing is written: the digest of those who are left would make it sound. The ledger goes first: what a
            # crash then keeps out of the book is noted again, or missed.
            if after != known and known in (None, before):
                noted = {"kind": "noted", "dataset": dataset, "digest": after}
                self.ledger.append({**noted, "study": "", "run": "", "step": ""})
            db.execute("COMMIT")

    def lacking(self) -> list[str]:
        """Data sets of which not exactly those are in the book that were noted."""
        with self._open() as db:
            return sorted(dataset for dataset, known in self._known().items() if _digest(db, dataset) != known)

    def refuse_shared(self, dataset: str, others: Collection[str]) -> None:
        """Raise ``patients-shared`` unless the data set shares no patient with any of the others; one that was never noted may share all.

        Raise ``patients-lost`` when it cannot be told for one of them.
        """
        if others and (lost := {dataset, *others} & set(self.lacking())):
            raise MedsynxError("patients-lost", f"{self.path.name} lacks patients of {', '.join(sorted(lost))}")
        with self._open() as db:
            mine = self._counts(db, dataset)
            for other in others:
                theirs = self._counts(db, other)
                if not mine or not theirs:
                    raise _shared(dataset, other, f"the patients of {other if mine else dataset} were never noted")
                common = {
                    kind: db.execute(
                        "SELECT count(*) FROM mark a JOIN mark b ON a.name = b.name WHERE a.dataset = ? AND b.dataset = ? AND a.kind = ?",
                        (dataset, other, kind),
                    ).fetchone()[0]
                    for kind in ("id", "record")
                }
                alike = common["record"] > CHANCE * min(mine.get("record", 0), theirs.get("record", 0))
                if common["id"] or alike:
                    raise _shared(dataset, other, "they hold the same patients")

    def _counts(self, db: sqlite3.Connection, dataset: str) -> dict[str, int]:
        return dict(db.execute("SELECT kind, count(*) FROM mark WHERE dataset = ? GROUP BY kind", (dataset,)))

    def _known(self) -> dict[str, str]:
        """Data set -> digest of all who were ever noted of it."""
        return {e["dataset"]: e["digest"] for e in self.ledger.entries() if e["kind"] == "noted"}

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        hint = "Put its newest back-up in its place. Without one, move it away: no data set can be apart from those noted in it then."
        what = f"{self.path.name} is damaged and cannot be read"
        return opened(self.path, MedsynxError("patients-lost", what, hint=hint))


def _digest(db: sqlite3.Connection, dataset: str) -> str:
    digest = hashlib.sha256()
    for name, kind in db.execute("SELECT name, kind FROM mark WHERE dataset = ? ORDER BY name", (dataset,)):
        digest.update(name + kind.encode() + b"\n")
    return digest.hexdigest()


def _shared(dataset: str, other: str, why: str) -> MedsynxError:
    return MedsynxError("patients-shared", f"data sets {dataset} and {other} are not apart: {why}")
