"""What the API says of a generator."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from server.generators.models import Generator, Status


class Privacy(BaseModel):
    """The short privacy statement; epsilons are null when noise was off."""

    epsilon: float | None
    epsilon_coordinator: float | None
    delta: float
    unit: str
    trust: str


class GeneratorOut(BaseModel):
    """A registered generator."""

    id: str
    name: str
    title: str
    family: str
    study_digest: str
    bundle_digest: str
    signer: str
    created_at: datetime
    status: Status
    has_report: bool
    gate: dict[str, Any] | None
    privacy: Privacy
    evaluation: dict[str, float | None] | None

    @classmethod
    def of(cls, g: Generator) -> GeneratorOut:
        """From its row."""
        return cls.model_validate({**g.model_dump(exclude={"summary", "file", "changed_by"}), **g.summary})
