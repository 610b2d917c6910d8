"""A site's SQLite files: for its owner's eyes only, on the disk when a transaction has ended, and named when they are spoilt."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medsynx.errors import MedsynxError


def create(path: Path) -> None:
    """An empty file, 0600; one that is there stays as it is."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


@contextmanager
def opened(path: Path, spoilt: MedsynxError) -> Iterator[sqlite3.Connection]:
    """A connection that begins no transaction by itself. Raises ``spoilt`` when the file is no database any more."""
    db = sqlite3.connect(path, timeout=30, isolation_level=None)
    try:
        db.execute("PRAGMA synchronous=FULL")
        yield db
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # locked, no room, append-only: not a spoilt file
            raise
        raise spoilt from None
    finally:
        db.close()
