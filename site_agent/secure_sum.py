"""A site's sessions of the secure sum, kept on disk between exchanges, and their answers.

Each exchange is answered by a child process of its own, so the state lies in ``secure_sum.sqlite`` (0600) of the site's folder. It is committed
before an answer leaves and before a record is touched. After a crash a session stays where it was, or its next exchange is refused: the step then
fails closed, and what the door had reserved stays spent. Secrets of the site's own mask leave the file when it masks, and shares of others when it
reveals them or a day has passed (the agent looks every minute). Deleted content is overwritten (``secure_delete``), though a file system or a disk
may keep older blocks.
Back-ups leave the file out, the audit log remembers what a copy that was brought back does not, and ``medsynx site acknowledge`` closes all sessions.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from medsynx.errors import MedsynxError
from medsynx.secure_sum.site import Mask, Session
from medsynx.secure_sum.terms import Message, Terms, refused
from medsynx.wire import Reply
from site_agent.audit import Audit
from site_agent.database import create, opened
from site_agent.identity import identity
from site_agent.policy import SiteFolder
from site_agent.traffic import message_bytes

FILE = "secure_sum.sqlite"
KEEP_SECONDS = 86_400  #: an abandoned session's secrets live no longer
DONE = json.dumps({"stage": "done"})
T = TypeVar("T")


class SecureSums:
    """This site's answers to the exchanges of secure sums.

    Args:
        folder: the site's folder.
        audit: records every message before it leaves.
    """

    def __init__(self, folder: SiteFolder, audit: Audit) -> None:
        self.folder, self.audit = folder, audit
        self.path = folder.path / FILE
        if not self.path.exists():
            create(self.path)
        with _open(self.path) as db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS session (tag TEXT PRIMARY KEY, at REAL NOT NULL, body TEXT NOT NULL)"
            )

    def answer(self, terms: Terms, exchange: str, told: Message) -> Message:
        """The answer to any exchange but ``mask``. Raises ``secure-sum-refused`` or ``policy-refused``."""
        sign = identity(self.folder.path).sign
        calls: dict[str, Callable[[Session], Message]] = {
            "advert": lambda s: s.advert(sign),
            "share": lambda s: s.share(told),
            "confirm": lambda s: s.confirm(told, sign),
            "unmask": lambda s: s.unmask(told),
        }
        message = self._advance(terms, calls[exchange])
        self._note(terms, exchange, message)
        return message

    def accept(self, terms: Terms, told: Message) -> Mask:
        """The mask of this site's vector, for the door. It can be had once a tag: from here on the session knows it no more."""
        sign = identity(self.folder.path).sign
        mask = self._advance(terms, lambda s: s.accept(told, sign))
        self._note(terms, "mask", mask.message)
        return mask

    def _note(self, terms: Terms, exchange: str, message: Message) -> None:
        raw = Reply(message=message).said
        if len(raw) > message_bytes(exchange, terms.roster):  # more than was asked for
            raise refused("the message is longer than such a message can be")
        self.audit.message(terms.study, terms.run, terms.step, exchange, len(raw), hashlib.sha256(raw).hexdigest())

    def close(self) -> int:
        """End every open session, as after a restore: one that was answered later would be answered again. Returns how many were open."""
        with _open(self.path) as db:
            return db.execute("UPDATE session SET body = ? WHERE body != ?", (DONE, DONE)).rowcount

    def _advance(self, terms: Terms, call: Callable[[Session], T]) -> T:
        """One step of a session within one transaction."""
        with _open(self.path) as db:
            _forget_old(db)  # before the transaction: a refusal undoes that
            db.execute("BEGIN IMMEDIATE")
            try:
                row = db.execute("SELECT body FROM session WHERE tag = ?", (terms.tag,)).fetchone()
                state: dict[str, Any] = json.loads(row[0]) if row else {}
                session = Session(terms, self.folder.policy().site, state)
                result = call(session)
                values = (terms.tag, time.time(), json.dumps(session.state))
                db.execute("INSERT OR REPLACE INTO session (tag, at, body) VALUES (?, ?, ?)", values)
                db.execute("COMMIT")
            except BaseException:
                db.execute("ROLLBACK")
                raise
        return result


def forget_old(site: Path) -> None:
    """Wipe what a site's sessions held for longer than :data:`KEEP_SECONDS`."""
    if (path := site / FILE).exists():
        with _open(path) as db:
            _forget_old(db)


def _forget_old(db: sqlite3.Connection) -> None:
    db.execute("UPDATE session SET body = ? WHERE at < ? AND body != ?", (DONE, time.time() - KEEP_SECONDS, DONE))


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    hint = "Move it away, and put no older copy in its place: sums under way fail, later ones begin anew."
    spoilt = MedsynxError("secure-sum-refused", f"{path.name} is damaged and cannot be read", hint=hint)
    with opened(path, spoilt) as db:
        db.execute("PRAGMA secure_delete=ON")
        yield db
