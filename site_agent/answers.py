"""The last answer this site gave in each run, so that one that was lost on its way can be given again.

A coordinator that stops between a question and the answer asks again when it is back. The same bytes tell nothing new: no second noise, no second
mask, no second charge. Only the identical request gets them (:attr:`medsynx.wire.Request.digest`), and only what the audit log says has left
(:meth:`site_agent.door.Door.again`). Files lie in ``runs/`` (0600) and go a day after they were written.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np

from medsynx.wire import Reply, Request

KEEP_SECONDS = 86_400


class Answers:
    """One file a run in this folder, ``RUN.answer``; a run's next answer takes its place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, request: Request, reply: Reply) -> None:
        """Written whole before the answer leaves, and on the disk when this returns."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for old in self.folder.glob("*.answer"):
            if old.stat().st_mtime < time.time() - KEEP_SECONDS:
                old.unlink(missing_ok=True)
        facts = json.dumps({"request": request.digest, "private": reply.private, "message": reply.message})
        part = self._file(request).with_suffix(".part")
        with os.fdopen(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as out:
            arrays = {f"array/{n}": a for n, a in reply.arrays.items()}
            np.savez(out, facts=np.frombuffer(facts.encode(), np.uint8), **arrays)
            out.flush()
            os.fsync(out.fileno())
        part.replace(self._file(request))

    def find(self, request: Request) -> Reply | None:
        """What exactly this request was answered, or None. A file that cannot be read is none."""
        try:
            with np.load(self._file(request), allow_pickle=False) as held:
                arrays = dict(held)
            facts = json.loads(arrays.pop("facts").tobytes())
        except (OSError, ValueError, KeyError, EOFError):
            return None
        if facts["request"] != request.digest:
            return None
        named = {n.removeprefix("array/"): a for n, a in arrays.items()}
        return Reply(named, private=facts["private"], message=facts["message"], answers=request.digest)

    def _file(self, request: Request) -> Path:
        return self.folder / f"{request.run}.answer"
