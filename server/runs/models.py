"""Table of runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

from server.database import now


class Run(SQLModel, table=True):
    """A run's latest word. ``sites`` is a list of name, status and reason."""

    id: str = Field(primary_key=True)
    study_name: str
    study_digest: str
    family: str
    status: str
    round: int
    rounds: int
    message: str | None = None
    started_at: datetime
    updated_at: datetime = Field(default_factory=now)
    sites: list[dict[str, Any]] = Field(sa_column=Column(JSON))
    epsilon: float | None = None
    generator_id: str | None = None
