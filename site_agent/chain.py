"""An append-only, hash-chained table in SQLite: the ground under the ledger and the audit log.

Each row's hash covers its content and the row before, so a changed, removed or reordered row breaks every later hash. Rows are on disk
(``synchronous=FULL``), and in the witness, before an append returns; SQLite itself refuses UPDATE and DELETE. Every row carries both clocks.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from medsynx.errors import MedsynxError
from site_agent import clock
from site_agent.database import create, opened
from site_agent.witness import Row, Witness

GENESIS = "0" * 64
SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, at TEXT NOT NULL, body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""
Entry = dict[str, Any]


class Chain:
    """One chained table in one file (mode 0600).

    Args:
        path: created when absent.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.witness = path, Witness(path)
        if not path.exists():
            self.witness.create()
            create(path)
        with self._open() as db:
            db.executescript(SCHEMA)

    def _open(self) -> AbstractContextManager[sqlite3.Connection]:
        return opened(self.path, MedsynxError("ledger-broken", f"{self.path.name} is damaged and cannot be read"))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, and nobody else at the witness. Whatever goes wrong before its COMMIT, nothing is written."""
        with self.witness.held(), self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def append(self, body: Entry, check: Callable[[list[Entry]], None] | None = None) -> str:
        """Add a row; returns its hash.

        Args:
            body: JSON-able content.
            check: sees every earlier entry in the same transaction and may refuse by raising.

        Raises:
            MedsynxError: ``ledger-broken`` when the chain does not verify or lacks rows of its witness, or what ``check`` raises; nothing is
                written then.
        """
        with self._writing() as db:
            rows = self._verified(db)
            lag = self.witness.lag(rows)
            if lag is None:
                raise older(self.path)
            if check:
                check(_entries(rows))
            added = self._insert(db, rows, body)
            db.execute("COMMIT")
            self.witness.add([*rows, added][lag:])
        return str(added[4])

    def acknowledge(self, by: str) -> int:
        """Go on with this chain although it is not the one the witness knows: what only the witness holds is added again, so nothing is refunded.

        Returns:
            How many rows were added from the witness.

        Raises:
            MedsynxError: ``ledger-broken`` when the chain itself does not verify.
        """
        with self._writing() as db:
            rows, (copied, _) = self._verified(db), self.witness.rows()
            known = {row[4] for row in rows}
            lost = [json.loads(row[2]) for row in copied if row[4] not in known]
            for body in lost:
                rows.append(self._insert(db, rows, {**body, "recovered": True}))
            note = {"kind": "acknowledged", "by": by, "recovered_rows": len(lost), "study": "", "run": "", "step": ""}
            rows.append(self._insert(db, rows, note))
            db.execute("COMMIT")
            self.witness.rewrite(rows)
        return len(lost)

    def entries(self) -> list[Entry]:
        """Every entry with its time ``at``, oldest first, after the chain was verified."""
        with self._open() as db:
            return _entries(self._verified(db))

    def behind_witness(self) -> bool:
        """Whether this chain is not the one the witness knows, so that every append is refused."""
        with self.witness.held(), self._open() as db:
            return self.witness.lag(self._verified(db)) is None

    def _insert(self, db: sqlite3.Connection, rows: list[Row], body: Entry) -> Row:
        now = clock.read()
        at = now.wall.isoformat(timespec="milliseconds")
        text = json.dumps({**body, "boot": now.boot, "up": now.up}, sort_keys=True)
        previous = rows[-1][4] if rows else GENESIS
        row: Row = (len(rows) + 1, at, text, previous, _hash(previous, at, text))
        db.execute("INSERT INTO entry (id, at, body, previous, hash) VALUES (?, ?, ?, ?, ?)", row)
        return row

    def _verified(self, db: sqlite3.Connection) -> list[Row]:
        rows = db.execute("SELECT id, at, body, previous, hash FROM entry ORDER BY id").fetchall()
        previous = GENESIS
        for number, (key, at, body, before, digest) in enumerate(rows, start=1):
            if key != number or before != previous or digest != _hash(before, at, body):
                raise MedsynxError("ledger-broken", f"{self.path.name}: entry {number} is not the one that was written")
            previous = digest
        return rows


def older(chain: Path) -> MedsynxError:
    """A chain that is not the one its witness knows."""
    return MedsynxError(
        "ledger-broken",
        f"{chain.name} lacks entries that were written before: it was restored, or its witness is gone",
        hint="Put the newest copy in place if there is one, then run `medsynx site acknowledge`.",
    )


def _entries(rows: list[Row]) -> list[Entry]:
    return [{**json.loads(r[2]), "at": r[1]} for r in rows]


def _hash(previous: str, at: str, body: str) -> str:
    return hashlib.sha256(f"{previous}\n{at}\n{body}".encode()).hexdigest()
