"""Table of people."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from sqlmodel import Field, SQLModel

from server.database import now


class Role(StrEnum):
    """What a person may do: researchers draw from released generators, coordinators release them, administrators also manage people."""

    ADMIN = "admin"
    COORDINATOR = "coordinator"
    RESEARCHER = "researcher"


class User(SQLModel, table=True):
    """A person who can sign in."""

    email: str = Field(primary_key=True)
    password_hash: str
    role: Role
    created_at: datetime = Field(default_factory=now)
