"""How a site is, for its IT: when it last heard the coordinator, answered and refused, which approvals end soon, and whether its books are sound."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from medsynx.errors import MedsynxError
from medsynx.flower_processes import CONTACT
from site_agent.chain import Chain, Entry, older
from site_agent.policy import SiteFolder, check_clock
from site_agent.witness import Witness

HOME = Path("flower", "supernode")  #: of a site's SuperNode, in the site's folder
SOON = timedelta(days=14)
SILENT = timedelta(minutes=1)  #: as long as Flower waits before a site counts as offline
ANSWERS = ("released", "message", "again")


@dataclass(frozen=True)
class Condition:
    """One look at a site's folder.

    Attributes:
        heard: when the coordinator last answered the agent, if it ever did; an agent that runs asks every second.
        answered: when something last left, if anything has.
        refused: when a request was last refused and with which code, if any was.
        ending: digest and end of each approval that ends within :data:`SOON`.
        trouble: what is wrong with the books, or with the clock by them, if anything: nothing is answered then.
    """

    heard: datetime | None
    answered: datetime | None
    refused: tuple[datetime, str] | None
    ending: tuple[tuple[str, datetime], ...]
    trouble: MedsynxError | None

    @staticmethod
    def of(folder: SiteFolder) -> Condition:
        """Verifies both books; makes none that is not there."""
        now, trouble, log = datetime.now(UTC), None, list[Entry]()
        try:
            spent, log = (_entries(folder.path / name) for name in ("ledger.sqlite", "audit.sqlite"))
            check_clock(spent, log)
        except MedsynxError as broken:
            trouble = broken
        last = {e["kind"]: e for e in log}
        answered = max((_at(last[kind]) for kind in ANSWERS if kind in last), default=None)
        refused = (_at(last["refused"]), str(last["refused"]["code"])) if "refused" in last else None
        ending = []
        for digest in folder.decisions.digests():
            decision = (folder.decisions.find(digest) or (None,))[0]
            if (
                decision
                and decision.state(now) == "approved"
                and decision.expires_at
                and decision.expires_at <= now + SOON
            ):
                ending.append((digest, decision.expires_at))
        return Condition(last_heard(folder.path), answered, refused, tuple(ending), trouble)

    def lines(self) -> list[str]:
        """For people."""
        at = "%Y-%m-%d %H:%M UTC"
        out = [
            f"coordinator last heard: {self.heard:%Y-%m-%d %H:%M:%S UTC}"
            if self.heard
            else "coordinator last heard: never"
        ]
        if self.heard and datetime.now(UTC) - self.heard > SILENT:
            out.append("the line or the coordinator is down; the agent asks on, and `medsynx site preflight` says more")
        out += [f"last answer: {self.answered:{at}}" if self.answered else "last answer: none yet"]
        out.append(f"last refusal: {self.refused[0]:{at}}, {self.refused[1]}" if self.refused else "last refusal: none")
        out += [f"study {digest[:12]}: its approval ends on {end:{at}}" for digest, end in self.ending]
        return [*out, f"answers nothing: {self.trouble.message}" if self.trouble else "ledger and audit log: verified"]

    def json(self) -> dict[str, Any]:
        """For scripts; times in ISO 8601."""
        return {
            "heard_at": self.heard and self.heard.isoformat(),
            "answered_at": self.answered and self.answered.isoformat(),
            "refused": self.refused and {"at": self.refused[0].isoformat(), "code": self.refused[1]},
            "approvals_ending": {digest: end.isoformat() for digest, end in self.ending},
        }

    def metrics(self) -> list[str]:
        """For Prometheus."""
        found = [("approvals_ending_soon", "", len(self.ending)), ("books_sound", "", int(self.trouble is None))]
        if self.answered:
            found.append(("last_answer_seconds", "", int(self.answered.timestamp())))
        if self.refused:
            found.append(("last_refusal_seconds", f'{{code="{self.refused[1]}"}}', int(self.refused[0].timestamp())))
        return [
            line
            for name, label, value in found
            for line in (f"# TYPE medsynx_site_{name} gauge", f"medsynx_site_{name}{label} {value}")
        ]


def last_heard(site: Path) -> datetime | None:
    """When the coordinator last answered this site's SuperNode."""
    try:
        return datetime.fromtimestamp((site / HOME / CONTACT).stat().st_mtime, UTC)
    except OSError:
        return None


def _entries(book: Path) -> list[Entry]:
    """Of a book that is in step with its witness; none of one that was never begun. Raises ``ledger-broken``."""
    if book.exists():
        chain = Chain(book)
        entries = chain.entries()
        if not chain.behind_witness():
            return entries
    elif not Witness(book).rows()[0]:
        return []
    raise older(book)


def _at(entry: Entry) -> datetime:
    return datetime.fromisoformat(entry["at"])
