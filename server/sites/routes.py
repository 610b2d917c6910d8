"""``/sites``."""

from __future__ import annotations

from fastapi import APIRouter
from sqlmodel import select

from server.auth.principal import Coordinator
from server.database import Db
from server.problems import RESPONSES
from server.runs.models import Run
from server.runs.schemas import SiteOut

router = APIRouter(prefix="/sites", tags=["sites"], responses=RESPONSES)


@router.get("", summary="List sites")
def sites(who: Coordinator, db: Db) -> list[SiteOut]:
    """Each site's state in the run that was last heard of."""
    latest: dict[str, SiteOut] = {}
    for run in sorted(db.exec(select(Run)).all(), key=lambda r: r.updated_at):
        for s in run.sites:
            latest[s["name"]] = SiteOut(name=s["name"], status=s["status"], last_seen=run.updated_at, run_id=run.id)
    return [latest[name] for name in sorted(latest)]
