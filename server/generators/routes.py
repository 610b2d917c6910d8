"""``/generators``."""

from __future__ import annotations

from fastapi import APIRouter, Request, UploadFile
from fastapi.responses import FileResponse

from medsynx.bundle import MAX_TOTAL
from medsynx.errors import MedsynxError
from server.auth.principal import Coordinator, Publisher, SignedIn
from server.database import Db
from server.generators import service
from server.generators.models import Status
from server.generators.schemas import GeneratorOut
from server.problems import RESPONSES
from server.users.models import Role

router = APIRouter(prefix="/generators", tags=["generators"], responses=RESPONSES)


@router.post("", status_code=201, summary="Register a signed bundle")
def upload(bundle: UploadFile, request: Request, who: Publisher, db: Db) -> GeneratorOut:
    """Verify a bundle's signature, digests and privacy mark, and register it as withheld."""
    content = bundle.file.read(MAX_TOTAL + 1)
    if len(content) > MAX_TOTAL:
        raise MedsynxError("bundle-unreadable", "the bundle is larger than any MedSynX writes")
    return GeneratorOut.of(service.register(db, request.app.state.folder, content, who))


@router.get("", summary="List generators")
def generators(who: SignedIn, db: Db) -> list[GeneratorOut]:
    """Newest first. Researchers see released ones."""
    return [GeneratorOut.of(g) for g in service.visible(db, who)]


@router.get("/{generator_id}", summary="One generator")
def generator(generator_id: str, who: SignedIn, db: Db) -> GeneratorOut:
    """Its privacy, gate and figures."""
    return GeneratorOut.of(service.find(db, generator_id, who))


@router.post("/{generator_id}/release", summary="Release")
def release(generator_id: str, who: Coordinator, db: Db) -> GeneratorOut:
    """Let researchers draw from it. Needs a report and a gate that is met."""
    return GeneratorOut.of(service.set_status(db, service.find(db, generator_id, who), Status.RELEASED, who))


@router.post("/{generator_id}/withhold", summary="Withhold")
def withhold(generator_id: str, who: Coordinator, db: Db) -> GeneratorOut:
    """Stop serving it."""
    return GeneratorOut.of(service.set_status(db, service.find(db, generator_id, who), Status.WITHHELD, who))


@router.get("/{generator_id}/bundle", summary="Download the signed bundle", response_class=FileResponse)
def bundle(generator_id: str, request: Request, who: SignedIn, db: Db) -> FileResponse:
    """The file as it was uploaded, for sampling offline."""
    found = service.find(db, generator_id, who)
    if who.role == Role.RESEARCHER:
        service.released(found)
    return FileResponse(
        request.app.state.folder.bundle(found.file), media_type="application/zip", filename=f"{found.name}.medsynx.zip"
    )
