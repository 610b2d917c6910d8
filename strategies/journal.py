"""What the sites said so far in the secure sum under way, so that a coordinator that comes back asks on instead of anew.

A second vector of a step cannot be had: sites mask once. So each exchange's answers are on the disk before the next one is asked, and the one that
was under way is asked again with the same words, to which sites give the same answers (:mod:`site_agent.answers`).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsynx import npz
from medsynx.generators.base import Arrays
from medsynx.wire import Reply
from strategies.federation import Answer


@dataclass(frozen=True)
class Journal:
    """The exchanges of one step.

    Attributes:
        folder: a file an exchange; None keeps nothing.
        label: of the step: study, run and step. Files of another are not read.
    """

    folder: Path | None
    label: str

    def write(self, exchange: str, answers: list[Answer]) -> None:
        """Keep the answers of one exchange; they are on the disk when this returns."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        facts: list[Any] = []
        arrays: Arrays = {}
        for answer in answers:
            reply = answer.reply
            said = reply and [reply.refusal, reply.private, reply.message, reply.answers]
            facts.append([answer.site, answer.reason, said])
            arrays |= {f"{answer.site}/{name}": array for name, array in (reply.arrays if reply else {}).items()}
        npz.write(self.folder / f"{exchange}.npz", {"label": self.label, "answers": facts}, arrays)

    def read(self, exchange: str) -> list[Answer] | None:
        """The answers of one exchange, or None when it was not finished or its file is spoilt."""
        held = self.folder and npz.read(self.folder / f"{exchange}.npz")
        if not held or held[0]["label"] != self.label:
            return None
        facts, arrays = held
        out = []
        for site, reason, said in facts["answers"]:
            mine = {n.split("/", 1)[1]: a for n, a in arrays.items() if n.startswith(f"{site}/")}
            reply = Reply(mine, said[0], said[1], said[2], said[3]) if said else None
            out.append(Answer(site, reply, reason))
        return out

    def clear(self) -> None:
        """Forget the step: its total is in the checkpoint."""
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
