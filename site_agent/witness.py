"""The second copy of a chain: one line of JSON a row in the folder ``witness/`` beside it.

A chain restored from a back-up verifies, and would refund what was spent since. So a row counts once it is in both places, and a chain that
lacks rows of its witness is refused until the privacy officer acknowledges it; what it lacks is then charged from here. Put the folder on another
disk (a mount or a link) and leave it out of back-ups and snapshots of the first: then these cannot bring both back.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = "witness"
Row = tuple[Any, ...]  #: id, at, body, previous, hash; as in the chain


class Witness:
    """The second copy of one chain (0600).

    Args:
        chain: the chain's file.
    """

    def __init__(self, chain: Path) -> None:
        self.path = chain.parent / FOLDER / f"{chain.stem}.jsonl"

    def create(self) -> None:
        """Begin an empty copy where there is none."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else writes chain or copy meanwhile."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        file = os.open(self.path.parent / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def rows(self) -> tuple[list[Row], bool]:
        """The rows that can be read, and whether all that is there is sound. A last line that a crash cut short is no row yet, and sound."""
        if not self.path.exists():
            return [], False
        out: list[Row] = []
        sound = True
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                row = tuple(json.loads(line))
                if len(row) != 5 or not isinstance(json.loads(row[2]), dict):
                    raise ValueError
            except (ValueError, TypeError):
                sound = False
                continue
            sound = sound and row[0] == number
            out.append(row)
        return out, sound

    def lag(self, rows: Sequence[Row]) -> int | None:
        """From which row on the chain is ahead of this copy (``len(rows)``: not at all); None when the chain is not the one copied here."""
        copied, sound = self.rows()
        if not rows and not self.path.exists():
            return 0
        # A crash between the two writes leaves the copy one row short, never more.
        known = sound and len(rows) - 1 <= len(copied) <= len(rows)
        return len(copied) if known and (not copied or copied[-1][4] == rows[len(copied) - 1][4]) else None

    def add(self, rows: Sequence[Row]) -> None:
        """Copy rows behind the last whole line; on the disk when this returns."""
        file = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600)
        try:
            os.ftruncate(file, self.path.read_bytes().rfind(b"\n") + 1)
            data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
        finally:
            os.close(file)

    def rewrite(self, rows: Sequence[Row]) -> None:
        """Start over as a copy of these rows. What was there is kept beside it where it was damaged."""
        if self.path.exists() and not self.rows()[1]:
            self.path.replace(self.path.with_suffix(".damaged"))
        else:
            self.path.write_bytes(b"")
        self.add(rows)
