"""What the privacy officer decided about each study: one file a study in ``approvals/``, written whole or not at all.

A file that is half-written, edited to something else or older than this format is no approval. Every decision is an entry of the audit log too: an
approval is written there before it counts, a refusal counts before it is written there.
"""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from medsynx import files
from medsynx.errors import MedsynxError
from medsynx.study import Study, parse_study

DAYS = 365  #: an approval without another date ends after so many days
Status = Literal["pending", "approved", "refused"]


class Decision(BaseModel):
    """One file. ``study`` is the manifest as it was read; a study refused by its digest alone has none.

    Attributes:
        roster: digest of the roster it was approved under, if there was one.
        by: who decided, as they said or as this machine knows them.
        reason: of a refusal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    status: Status
    study: dict[str, Any] | None = None
    dataset: str | None = None
    roster: str | None = None
    by: str
    at: AwareDatetime
    expires_at: AwareDatetime | None = None
    reason: str = ""

    def state(self, now: datetime | None = None) -> str:
        """``pending``, ``approved``, ``expired`` or ``refused``."""
        ended = self.expires_at is None or self.expires_at <= (now or datetime.now(UTC))
        return "expired" if self.status == "approved" and ended else self.status


def pending(study: Study, dataset: str) -> Decision:
    """A study that was looked at and waits for a decision."""
    return Decision(
        status="pending", study=study.model_dump(mode="json"), dataset=dataset, by=me(), at=datetime.now(UTC)
    )


def approved(study: Study, dataset: str, roster: str | None, by: str | None, expires: datetime | None) -> Decision:
    """An approval of exactly this study on this data set."""
    now = datetime.now(UTC)
    return Decision(
        status="approved",
        study=study.model_dump(mode="json"),
        dataset=dataset,
        roster=roster,
        by=by or me(),
        at=now,
        expires_at=expires or now + timedelta(days=DAYS),
    )


class Decisions:
    """Reads and writes ``approvals/``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, digest: str, decision: Decision) -> Path:
        """Put a decision in the place of the one before; on disk when this returns."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        target = self.folder / f"{digest}.json"
        files.write(target, decision.model_dump_json(indent=2))
        return target

    def find(self, digest: str) -> tuple[Decision, Study | None] | None:
        """The decision on this digest and its study, or None when there is none that holds: no file, spoilt, or of another study."""
        if not is_digest(digest):
            return None
        try:
            decision = Decision.model_validate_json((self.folder / f"{digest}.json").read_text("utf-8"))
            study = None if decision.study is None else parse_study(decision.study)
        except (OSError, ValueError, ValidationError, MedsynxError):
            return None
        if study is None and decision.status != "refused":
            return None
        return None if study is not None and study.digest != digest else (decision, study)

    def digests(self) -> list[str]:
        """Digests with a file, whatever is in it."""
        return sorted(f.stem for f in self.folder.glob("*.json") if is_digest(f.stem))


def is_digest(text: str) -> bool:
    """Whether a text is a study's SHA-256 in lower case."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def me() -> str:
    """Whom this machine takes the present user for."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, in a container
        return f"uid {os.getuid()}"
