"""``/generators``."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from starlette.datastructures import UploadFile

from medsynx.bundle import MAX_TOTAL
from medsynx.errors import MedsynxError
from server.auth.principal import Coordinator, Publisher, SignedIn
from server.database import Db
from server.generators import service
from server.generators.models import Status
from server.generators.schemas import GeneratorOut
from server.problems import RESPONSES
from server.users.models import Role

_FILE = {"type": "object", "required": ["bundle"], "properties": {"bundle": {"type": "string", "format": "binary"}}}
FORM = {"required": True, "content": {"multipart/form-data": {"schema": _FILE}}}
router = APIRouter(prefix="/generators", tags=["generators"], responses=RESPONSES)


@router.post("", status_code=201, summary="Register a signed bundle", openapi_extra={"requestBody": FORM})
async def upload(request: Request, who: Publisher, db: Db) -> GeneratorOut:
    """Verify a bundle's signature, digests and privacy mark, and register it as withheld."""
    db.rollback()  # no connection is held while the body comes, which is read for whom it may come from only
    async with request.form(max_files=1, max_fields=0) as form:
        bundle = form.get("bundle")
        if not isinstance(bundle, UploadFile):
            raise MedsynxError("request-invalid", "the form has no file `bundle`")
        content = await bundle.read(MAX_TOTAL + 1)
    if len(content) > MAX_TOTAL:
        raise MedsynxError("bundle-unreadable", "the bundle is larger than any MedSynX writes")
    made = await run_in_threadpool(service.register, db, request.app.state.folder, content, who)
    return GeneratorOut.of(made)


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
