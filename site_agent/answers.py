"""The last answer this site gave in each run, so that one that was lost on its way can be given again.

A coordinator that stops between a question and the answer asks again when it is back. The same bytes tell nothing new: no second noise, no second
mask, no second charge. Only the identical request gets them (:attr:`medsynx.wire.Request.digest`), and only what the audit log says has left
(:meth:`site_agent.door.Door.again`). Files lie in ``runs/`` (0600) and go a day after they were written.
"""

from __future__ import annotations

import time
from pathlib import Path

from medsynx import npz
from medsynx.wire import Reply, Request

KEEP_SECONDS = 86_400


class Answers:
    """One file a run in this folder, ``RUN.answer``; a run's next answer takes its place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, request: Request, reply: Reply) -> None:
        """Written whole before the answer leaves, and on the disk when this returns."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.forget_old()
        facts = {"request": request.digest, "private": reply.private, "message": reply.message}
        npz.write(self._file(request), facts, {f"array/{n}": a for n, a in reply.arrays.items()})

    def forget_old(self) -> None:
        """Remove what has lain there for longer than :data:`KEEP_SECONDS`, also parts of a writer that was killed."""
        for old in (*self.folder.glob("*.answer"), *self.folder.glob("*.part")):
            if old.stat().st_mtime < time.time() - KEEP_SECONDS:
                old.unlink(missing_ok=True)

    def find(self, request: Request) -> Reply | None:
        """What exactly this request was answered, or None. A file that cannot be read is none."""
        held = npz.read(self._file(request))
        if held is None or held[0]["request"] != request.digest:
            return None
        facts, arrays = held
        named = {n.removeprefix("array/"): a for n, a in arrays.items()}
        return Reply(named, private=facts["private"], message=facts["message"], answers=request.digest)

    def _file(self, request: Request) -> Path:
        return self.folder / f"{request.run}.answer"
