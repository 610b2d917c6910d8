"""What the coordinator says of a run, and what the API repeats."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, BaseModel, Field

RUN_ID = r"^[a-z0-9][a-z0-9-]{0,63}$"
SiteStatus = Literal["online", "offline", "answered", "failed", "late"]


class SiteState(BaseModel):
    """One site in a run."""

    name: str = Field(max_length=63)
    status: SiteStatus
    reason: str | None = Field(default=None, max_length=64)


class RunIn(BaseModel):
    """How a run goes."""

    study_name: str = Field(max_length=63)
    study_digest: str = Field(pattern="^[0-9a-f]{64}$")
    family: str = Field(max_length=63)
    status: Literal["waiting", "running", "finished", "failed"]
    round: int = Field(ge=0)
    rounds: int = Field(ge=0)
    message: str | None = Field(default=None, max_length=500)
    started_at: AwareDatetime
    sites: list[SiteState] = Field(max_length=10_000)
    epsilon: float | None = None
    generator_id: str | None = None


class RunOut(RunIn):
    """A run with its name and when it was last heard of."""

    id: str
    updated_at: AwareDatetime


class SiteOut(BaseModel):
    """A site's last known state."""

    name: str
    status: SiteStatus
    last_seen: AwareDatetime
    run_id: str
