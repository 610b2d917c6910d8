"""Tables of invitations and of enrolled sites."""

from __future__ import annotations

from datetime import datetime

from sqlmodel import Field, SQLModel

from server.database import now


class Invite(SQLModel, table=True):
    """A one-time token for one site. Only its SHA-256 is kept.

    Attributes:
        renews: it may replace the keys of a site that is enrolled already.
        taken_by: node key it was used with; the same keys may ask again, for an answer that got lost.
    """

    digest: str = Field(primary_key=True)
    site: str
    expires_at: datetime
    renews: bool = False
    taken_by: str | None = None
    created_at: datetime = Field(default_factory=now)


class Member(SQLModel, table=True):
    """A site: its public keys and whether it takes part (``enrolled``, ``revoked``, ``left``)."""

    site: str = Field(primary_key=True)
    site_id: str
    identity: str = Field(unique=True)
    node_key: str = Field(unique=True)
    status: str = "enrolled"
    enrolled_at: datetime = Field(default_factory=now)
    changed_at: datetime = Field(default_factory=now)
    asked_at: datetime | None = None  #: of its latest signed request; an earlier or equal one is a replay
