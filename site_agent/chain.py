"""An append-only, hash-chained table in SQLite: the ground under the ledger and the audit log.

Each row's hash covers its content and the row before, so a changed, removed or reordered row breaks every later hash. Rows are on disk
(``synchronous=FULL``) before an append returns; SQLite itself refuses UPDATE and DELETE.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medsynx.errors import MedsynxError

GENESIS = "0" * 64
SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, at TEXT NOT NULL, body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE);
CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'append-only'); END;
CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'append-only'); END;
"""


class Chain:
    """One chained table in one file (mode 0600).

    Args:
        path: created when absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        with self._open() as db:
            db.executescript(SCHEMA)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous=FULL")
            yield db
        finally:
            db.close()

    def append(self, body: dict[str, Any], check: Callable[[list[dict[str, Any]]], None] | None = None) -> str:
        """Add a row; returns its hash.

        Args:
            body: JSON-able content.
            check: sees every earlier body in the same transaction and may refuse by raising.

        Raises:
            MedsynxError: ``ledger-broken`` when the chain does not verify, or what ``check`` raises; nothing is written then.
        """
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                rows = self._verified(db)
                if check:
                    check([json.loads(r[2]) for r in rows])
                at, text = datetime.now(UTC).isoformat(timespec="milliseconds"), json.dumps(body, sort_keys=True)
                previous = rows[-1][4] if rows else GENESIS
                digest = _hash(previous, at, text)
                db.execute(
                    "INSERT INTO entry (at, body, previous, hash) VALUES (?, ?, ?, ?)", (at, text, previous, digest)
                )
                db.execute("COMMIT")
            except BaseException:
                db.execute("ROLLBACK")
                raise
        return digest

    def entries(self) -> list[dict[str, Any]]:
        """Every body with its time ``at``, oldest first, after the chain was verified."""
        with self._open() as db:
            return [{"at": r[1], **json.loads(r[2])} for r in self._verified(db)]

    def _verified(self, db: sqlite3.Connection) -> list[tuple[Any, ...]]:
        rows = db.execute("SELECT id, at, body, previous, hash FROM entry ORDER BY id").fetchall()
        previous = GENESIS
        for number, (key, at, body, before, digest) in enumerate(rows, start=1):
            if key != number or before != previous or digest != _hash(before, at, body):
                raise MedsynxError("ledger-broken", f"{self.path.name}: entry {number} is not the one that was written")
            previous = digest
        return rows


def _hash(previous: str, at: str, body: str) -> str:
    return hashlib.sha256(f"{previous}\n{at}\n{body}".encode()).hexdigest()
