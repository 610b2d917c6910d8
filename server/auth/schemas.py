"""What signing in answers."""

from __future__ import annotations

from pydantic import BaseModel

from server.users.models import Role


class AccessToken(BaseModel):
    """A bearer token."""

    access_token: str
    token_type: str = "bearer"
    expires_in: int
    role: Role
