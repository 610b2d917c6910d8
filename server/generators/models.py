"""Table of registered bundles."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

from server.database import now


class Status(StrEnum):
    """A generator is withheld until a coordinator releases it."""

    WITHHELD = "withheld"
    RELEASED = "released"


class Generator(SQLModel, table=True):
    """A verified bundle. ``summary`` holds what lists show of its gate, privacy and evaluation."""

    id: str = Field(primary_key=True)
    file: str
    name: str
    title: str
    family: str
    study_digest: str
    bundle_digest: str
    signer: str
    status: Status = Status.WITHHELD
    has_report: bool
    summary: dict[str, Any] = Field(sa_column=Column(JSON))
    created_at: datetime = Field(default_factory=now)
    changed_by: str
