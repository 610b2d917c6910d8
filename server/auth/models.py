"""Tables of what is trusted: service tokens and bundle signers."""

from __future__ import annotations

from datetime import datetime

from sqlmodel import Field, SQLModel

from server.database import now


class ServiceToken(SQLModel, table=True):
    """What a service signs in with. Only its SHA-256 is kept; what it opens stands in the token itself, so that no edit of this table widens it."""

    digest: str = Field(primary_key=True)
    name: str
    expires_at: datetime
    created_at: datetime = Field(default_factory=now)


class Signer(SQLModel, table=True):
    """A public key whose bundles are accepted."""

    fingerprint: str = Field(primary_key=True)
    added_at: datetime = Field(default_factory=now)
