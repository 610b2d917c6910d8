"""The record of a data set: which file became what, under which recipe and key. SQLite, 0600; source names and contents only as HMACs.

It is what a killed run resumes from, what the report counts, and what a withdrawal deletes by.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medsynx.errors import MedsynxError
from site_agent.deid.keys import SiteKey
from site_agent.deid.profile import edition
from site_agent.deid.recipe import Recipe

SCHEMA = """
PRAGMA journal_mode=WAL;
CREATE TABLE IF NOT EXISTS dataset (
  name TEXT PRIMARY KEY, key TEXT NOT NULL, recipe_digest TEXT NOT NULL, recipe TEXT NOT NULL, edition TEXT NOT NULL, created TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS file (
  id INTEGER PRIMARY KEY, dataset TEXT NOT NULL REFERENCES dataset(name) ON DELETE CASCADE, source TEXT NOT NULL, content TEXT NOT NULL,
  verdict TEXT NOT NULL CHECK (verdict IN ('clean', 'quarantined', 'failed')), reason TEXT, detail TEXT, output TEXT, sha256 TEXT,
  bytes INTEGER, kind TEXT, modality TEXT, shape TEXT, patient TEXT, changed INTEGER NOT NULL DEFAULT 0,
  actions TEXT NOT NULL DEFAULT '{}', kept TEXT NOT NULL DEFAULT '{}', notes TEXT NOT NULL DEFAULT '{}', at TEXT NOT NULL,
  UNIQUE (dataset, source));
CREATE INDEX IF NOT EXISTS file_content ON file (dataset, content);
CREATE INDEX IF NOT EXISTS file_patient ON file (dataset, patient);
CREATE TABLE IF NOT EXISTS row_patient (
  file INTEGER NOT NULL REFERENCES file(id) ON DELETE CASCADE, patient TEXT NOT NULL, PRIMARY KEY (file, patient));
CREATE TABLE IF NOT EXISTS mark (
  file INTEGER NOT NULL REFERENCES file(id) ON DELETE CASCADE, patient TEXT NOT NULL, kind TEXT NOT NULL, value TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS mark_file ON mark (file, kind);
CREATE TABLE IF NOT EXISTS picture (
  file INTEGER NOT NULL REFERENCES file(id) ON DELETE CASCADE, caption TEXT NOT NULL, before BLOB NOT NULL, after BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS mapping (dataset TEXT NOT NULL REFERENCES dataset(name) ON DELETE CASCADE, patient TEXT NOT NULL, sealed BLOB NOT NULL,
  PRIMARY KEY (dataset, patient));
CREATE TABLE IF NOT EXISTS withdrawn (patient TEXT PRIMARY KEY, at TEXT NOT NULL);
"""
MOST_PICTURES = 60


@dataclass
class Entry:
    """One file's row, before it is stored."""

    source: str
    content: str
    verdict: str
    reason: str | None = None
    detail: str | None = None
    output: str | None = None
    sha256: str | None = None
    size: int = 0
    kind: str | None = None
    modality: str | None = None
    shape: tuple[int, ...] = ()
    patient: str | None = None
    patients: tuple[str, ...] = ()
    marks: dict[str, str] = field(default_factory=dict)
    changed: bool = False
    actions: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Any] = field(default_factory=dict)
    pictures: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    sealed: bytes | None = None


class Catalogue:
    """Data sets and their files in one SQLite file.

    Args:
        path: created with mode 0600 when absent.

    Raises:
        MedsynxError: ``source-invalid`` when it is another kind of file, or read-only.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise MedsynxError("source-invalid", f"{path} is no catalogue that can be written: {error}") from None
        self._db.execute("PRAGMA foreign_keys=ON")
        self._db.execute("PRAGMA secure_delete=ON")

    def close(self) -> None:
        """Close the file; the journal is folded in."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; a full disk becomes ``disk-full``."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
                raise MedsynxError("disk-full", f"no space for {self.path.name}") from None
            raise

    def open_dataset(self, name: str, key: SiteKey, recipe: Recipe) -> None:
        """Begin a data set, or go on with it under the same key and recipe.

        Raises:
            MedsynxError: ``key-changed`` or ``recipe-changed``.
        """
        row = self.dataset(name)
        if row is None:
            with self.transaction() as db:
                db.execute(
                    "INSERT INTO dataset VALUES (?, ?, ?, ?, ?, ?)",
                    (name, key.fingerprint, recipe.digest, recipe.model_dump_json(), edition(), _now()),
                )
            return
        if row["key"] != key.fingerprint:
            raise MedsynxError("key-changed", f"data set {name} was begun under another key")
        if row["recipe_digest"] != recipe.digest or row["edition"] != edition():
            raise MedsynxError("recipe-changed", f"data set {name} was begun under another recipe or edition")

    def dataset(self, name: str) -> dict[str, Any] | None:
        """One data set's row, or None."""
        row = self._db.execute("SELECT * FROM dataset WHERE name = ?", (name,)).fetchone()
        return dict(row) if row else None

    def datasets(self) -> list[dict[str, Any]]:
        """Every data set with its counts."""
        rows = self._db.execute("SELECT * FROM dataset ORDER BY name").fetchall()
        return [{**dict(r), **self.totals(r["name"])} for r in rows]

    def totals(self, name: str) -> dict[str, Any]:
        """Files by verdict, and patients."""
        counts = dict(
            self._db.execute(
                "SELECT verdict, COUNT(*) FROM file WHERE dataset = ? GROUP BY verdict", (name,)
            ).fetchall()
        )
        patients = self._db.execute(
            "SELECT COUNT(*) FROM (SELECT patient FROM file WHERE dataset = ?1 AND verdict = 'clean' AND patient IS NOT NULL "
            "UNION SELECT r.patient FROM row_patient r JOIN file f ON f.id = r.file WHERE f.dataset = ?1)",
            (name,),
        ).fetchone()[0]
        return {v: counts.get(v, 0) for v in ("clean", "quarantined", "failed")} | {"patients": patients}

    def done(self, name: str, source: str) -> dict[str, Any] | None:
        """The row of a source file that was read before, or None."""
        row = self._db.execute("SELECT * FROM file WHERE dataset = ? AND source = ?", (name, source)).fetchone()
        return dict(row) if row else None

    def same_content(self, name: str, content: str) -> dict[str, Any] | None:
        """A clean file with the same bytes, or None."""
        row = self._db.execute(
            "SELECT * FROM file WHERE dataset = ? AND content = ? AND verdict = 'clean' ORDER BY id LIMIT 1",
            (name, content),
        ).fetchone()
        return dict(row) if row else None

    def owner_of(self, name: str, output: str) -> dict[str, Any] | None:
        """The clean file that was written under this output name, or None."""
        row = self._db.execute(
            "SELECT * FROM file WHERE dataset = ? AND output = ? AND verdict = 'clean' ORDER BY id LIMIT 1",
            (name, output),
        ).fetchone()
        return dict(row) if row else None

    def put(self, name: str, e: Entry) -> None:
        """Store a file's row, replacing what an earlier run said of the same source."""
        with self.transaction() as db:
            db.execute("DELETE FROM file WHERE dataset = ? AND source = ?", (name, e.source))
            cursor = db.execute(
                "INSERT INTO file (dataset, source, content, verdict, reason, detail, output, sha256, bytes, kind, modality, shape, patient, "
                "changed, actions, kept, notes, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    name,
                    e.source,
                    e.content,
                    e.verdict,
                    e.reason,
                    e.detail,
                    e.output,
                    e.sha256,
                    e.size,
                    e.kind,
                    e.modality,
                    json.dumps(e.shape),
                    e.patient,
                    int(e.changed),
                    json.dumps(e.actions),
                    json.dumps(e.kept),
                    json.dumps(e.notes),
                    _now(),
                ),
            )
            file = cursor.lastrowid
            db.executemany("INSERT OR IGNORE INTO row_patient VALUES (?, ?)", [(file, p) for p in e.patients])
            db.executemany(
                "INSERT INTO mark VALUES (?, ?, ?, ?)", [(file, e.patient, k, v) for k, v in e.marks.items()]
            )
            room = (
                MOST_PICTURES
                - db.execute(
                    "SELECT COUNT(*) FROM picture p JOIN file f ON f.id = p.file WHERE f.dataset = ?", (name,)
                ).fetchone()[0]
            )
            db.executemany("INSERT INTO picture VALUES (?, ?, ?, ?)", [(file, *p) for p in e.pictures[: max(0, room)]])
            if e.sealed and e.patient:
                db.execute("INSERT OR REPLACE INTO mapping VALUES (?, ?, ?)", (name, e.patient, e.sealed))

    def quarantine(self, file: int, reason: str, detail: str = "") -> None:
        """Take a clean file back. Its output must be gone already."""
        with self.transaction() as db:
            db.execute(
                "UPDATE file SET verdict = 'quarantined', reason = ?, detail = ?, output = NULL, sha256 = NULL WHERE id = ?",
                (reason, detail, file),
            )
            db.execute("DELETE FROM picture WHERE file = ?", (file,))

    def files(self, name: str, *, patient: str | None = None, verdict: str | None = None) -> Iterator[dict[str, Any]]:
        """Rows of a data set, in order of arrival."""
        where, values = "dataset = ?", [name]
        if verdict:
            where, values = where + " AND verdict = ?", [*values, verdict]
        if patient:
            where += " AND (patient = ? OR id IN (SELECT file FROM row_patient WHERE patient = ?))"
            values += [patient, patient]
        for row in self._db.execute(f"SELECT * FROM file WHERE {where} ORDER BY id", values).fetchall():
            yield dict(row)

    def pictures(self, name: str) -> list[dict[str, Any]]:
        """Before and after, for the report."""
        rows = self._db.execute(
            "SELECT p.caption, p.before, p.after, f.modality, f.output FROM picture p JOIN file f ON f.id = p.file "
            "WHERE f.dataset = ? ORDER BY p.file",
            (name,),
        ).fetchall()
        return [dict(r) for r in rows]

    def two_people(self, name: str) -> list[str]:
        """Pseudonyms with different birth dates, or with a name that shares no word with those of the same patient.

        Names may differ where the birth date is the same (marriage); a file without a birth date must share a word with the others.
        """
        births: dict[str, set[str]] = {}
        named: dict[str, list[tuple[str | None, frozenset[str]]]] = {}
        rows = self._db.execute(
            "SELECT DISTINCT f.patient, b.value, n.value FROM file f LEFT JOIN mark b ON b.file = f.id AND b.kind = 'birth' "
            "LEFT JOIN mark n ON n.file = f.id AND n.kind = 'name' WHERE f.dataset = ? AND f.patient IS NOT NULL",
            (name,),
        )
        for patient, birth, words in rows:
            if birth:
                births.setdefault(patient, set()).add(birth)
            if words:
                named.setdefault(patient, []).append((birth, frozenset(words.split(","))))
        out = {p for p, values in births.items() if len(values) > 1}
        for patient, files in named.items():
            known = frozenset[str]().union(*(words for birth, words in files if birth))
            bare = [words for birth, words in files if not birth]
            others = [known] if known else bare
            if any(not (a & b) for a in bare for b in others):
                out.add(patient)
        return sorted(out)

    def issuer_missing(self, name: str) -> int:
        """How many patient identifiers of DICOM occur both with and without an issuer, and so under two pseudonyms."""
        query = (
            "SELECT COUNT(*) FROM (SELECT m.value FROM mark m JOIN file f ON f.id = m.file WHERE f.dataset = ? "
            "AND m.kind IN ('id', 'bare-id') GROUP BY m.value HAVING COUNT(DISTINCT m.kind) = 2)"
        )
        return int(self._db.execute(query, (name,)).fetchone()[0])

    def remove_files(self, ids: list[int]) -> None:
        """Forget rows and everything that hangs on them."""
        with self.transaction() as db:
            db.executemany("DELETE FROM file WHERE id = ?", [(i,) for i in ids])

    def remove_dataset(self, name: str) -> None:
        """Forget a data set whole."""
        with self.transaction() as db:
            db.execute("DELETE FROM dataset WHERE name = ?", (name,))
        self._forget_journal()

    def withdraw(self, patient: str) -> None:
        """Forget what is stored of a patient beside files, and remember the pseudonym: it must not come in again."""
        with self.transaction() as db:
            db.execute("DELETE FROM mapping WHERE patient = ?", (patient,))
            db.execute("DELETE FROM row_patient WHERE patient = ?", (patient,))
            db.execute("INSERT OR IGNORE INTO withdrawn VALUES (?, ?)", (patient, _now()))
        self._forget_journal()

    def _forget_journal(self) -> None:
        """Deleted rows are overwritten in the file (``secure_delete``); the journal must not keep them either."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def withdrawn(self) -> frozenset[str]:
        """Pseudonyms of the patients who withdrew."""
        return frozenset(r[0] for r in self._db.execute("SELECT patient FROM withdrawn"))

    def references(self, output: str) -> int:
        """How many clean files of any data set lie under this output name."""
        query = "SELECT COUNT(*) FROM file WHERE output = ? AND verdict = 'clean'"
        return int(self._db.execute(query, (output,)).fetchone()[0])

    def update_table(self, file: int, output: str, sha256: str, size: int) -> None:
        """A table was rewritten without a patient's rows."""
        with self.transaction() as db:
            db.execute("UPDATE file SET output = ?, sha256 = ?, bytes = ? WHERE id = ?", (output, sha256, size, file))

    def mapping(self, name: str) -> dict[str, bytes]:
        """Pseudonym -> sealed identifier; empty unless the recipe asked for it."""
        return dict(self._db.execute("SELECT patient, sealed FROM mapping WHERE dataset = ?", (name,)).fetchall())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
