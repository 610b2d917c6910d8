"""What the API says of enrolled sites."""

from __future__ import annotations

from pydantic import AwareDatetime, BaseModel


class MemberOut(BaseModel):
    """A site's public keys and state."""

    site: str
    site_id: str
    identity: str
    node_key: str
    status: str
    enrolled_at: AwareDatetime
    changed_at: AwareDatetime
