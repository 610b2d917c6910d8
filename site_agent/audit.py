"""The audit log: what left this hospital (name, shape, type, bytes, hash), what was refused (code), and what the privacy officer decided.

Durable before the bytes move.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

from medsynx.secure_sum.terms import EXCHANGES, refused
from site_agent.approvals import is_digest
from site_agent.chain import Chain, Entry

RUN = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")  #: proper name of a run
STEP = re.compile(r"\w[\w .:-]{0,63}", re.ASCII)
ONCE = EXCHANGES[2:]  #: exchanges whose answer, once given, is never another
IMPROPER = "?"  #: written for what was asked under no proper name: it came from outside and is shown on a terminal


class Audit:
    """Append-only and hash-chained; one file a site."""

    def __init__(self, path: Path) -> None:
        self.chain = Chain(path)

    def released(self, study: str, run: str, step: str, arrays: dict[str, dict[str, Any]]) -> None:
        """Arrays are about to leave."""
        self.chain.append({"kind": "released", "study": study, "run": run, "step": step, "arrays": arrays})

    def message(self, study: str, run: str, step: str, exchange: str, size: int, sha256: str) -> None:
        """A message of a secure sum (keys, sealed shares, signatures; nothing of a patient) is about to leave.

        Raises ``secure-sum-refused`` for a second one of :data:`ONCE`: the session was brought back from before the first.
        """
        body: Entry = {"kind": "message", "study": study, "run": run, "step": step, "exchange": exchange}

        def once(entries: list[Entry]) -> None:
            if exchange in ONCE and any(body.items() <= e.items() for e in entries if e["kind"] == "message"):
                raise refused(f"the audit log says that this site has given its {exchange!r} in this sum")

        self.chain.append({**body, "bytes": size, "sha256": sha256}, once)

    def again(self, study: str, run: str, step: str, size: int) -> None:
        """The last answer of this step (``size`` bytes, cargo and message) is about to leave a second time, byte for byte."""
        self.chain.append({"kind": "again", "study": study, "run": run, "step": step, "bytes": size})

    def refused(self, study: str, run: str, step: str, code: str) -> None:
        """A request was refused with this code. What it named is written only if it can be a digest and names."""
        study = study if is_digest(study) else IMPROPER
        run, step = (name if proper.fullmatch(name) else IMPROPER for name, proper in ((run, RUN), (step, STEP)))
        self.chain.append({"kind": "refused", "study": study, "run": run, "step": step, "code": code})

    def decided(
        self, study: str, status: str, by: str, dataset: str | None, expires: datetime | None, reason: str
    ) -> None:
        """The privacy officer approved or refused a study; no run, no step."""
        body = {"kind": f"study-{status}", "study": study, "run": "", "step": "", "by": by, "dataset": dataset}
        self.chain.append({**body, "expires_at": expires.isoformat() if expires else None, "reason": reason[:500]})

    def undecided(self) -> dict[str, str]:
        """Digest of each study that was asked for without an approval -> when last."""
        return {
            e["study"]: e["at"]
            for e in self.chain.entries()
            if e["kind"] == "refused" and e["code"] == "study-not-approved" and is_digest(e["study"])
        }


def sent(entries: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """The entries with which something left, and its bytes. An answer given again counts again."""
    out: list[tuple[dict[str, Any], int]] = []
    last: dict[tuple[str, str, str], int] = {}
    for e in entries:
        if e["kind"] in ("released", "message"):
            last[_step(e)] = sum(a["bytes"] for a in e["arrays"].values()) if e["kind"] == "released" else e["bytes"]
        if e["kind"] in ("released", "message", "again"):
            # An entry of `again` without its bytes is an older one.
            out.append((e, e["bytes"] if e["kind"] == "again" and "bytes" in e else last.get(_step(e), 0)))
    return out


def _step(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["study"], entry["run"], entry["step"]
