"""``/runs``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from sqlmodel import select

from medsynx.errors import MedsynxError
from server.auth.principal import Coordinator, Publisher
from server.database import Db, now
from server.problems import RESPONSES
from server.runs.models import Run
from server.runs.schemas import RUN_ID, RunIn, RunOut

router = APIRouter(prefix="/runs", tags=["runs"], responses=RESPONSES)


@router.put("/{run_id}", summary="Tell how a run goes")
def put_run(run_id: Annotated[str, Path(pattern=RUN_ID)], body: RunIn, who: Publisher, db: Db) -> RunOut:
    """Create or update a run."""
    run = db.merge(Run(id=run_id, updated_at=now(), **body.model_dump()))
    db.commit()
    db.refresh(run)
    return RunOut.model_validate(run.model_dump())


@router.get("", summary="List runs")
def runs(who: Coordinator, db: Db) -> list[RunOut]:
    """Newest first."""
    found = db.exec(select(Run)).all()
    return [RunOut.model_validate(r.model_dump()) for r in sorted(found, key=lambda r: r.started_at, reverse=True)]


@router.get("/{run_id}", summary="One run")
def run(run_id: str, who: Coordinator, db: Db) -> RunOut:
    """Its rounds, and who answered."""
    found = db.get(Run, run_id)
    if found is None:
        raise MedsynxError("not-found", "there is no such run")
    return RunOut.model_validate(found.model_dump())
