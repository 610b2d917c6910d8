"""``/generators/{id}/report``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from medsynx.errors import MedsynxError
from server.auth.principal import SignedIn
from server.database import Db
from server.generators import service
from server.problems import RESPONSES

CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
router = APIRouter(prefix="/generators", tags=["reports"], responses=RESPONSES)


@router.get(
    "/{generator_id}/report",
    summary="Evaluation report",
    response_class=HTMLResponse,
    responses={200: {"content": {"text/html": {}, "application/json": {}}, "description": "Page or JSON."}},
)
def report(
    generator_id: str,
    request: Request,
    who: SignedIn,
    db: Db,
    format: Literal["html", "json"] | None = None,
    accept: Annotated[str, Header()] = "",
) -> Response:
    """The report as a page, or as JSON (``?format=json`` or ``Accept: application/json``)."""
    bundle = service.open_bundle(request.app.state.folder, service.find(db, generator_id, who))
    if format == "json" or (format is None and "application/json" in accept):
        body: dict[str, Any] = {**bundle.json("evaluation.json"), "privacy": bundle.json("privacy.json")}
        return JSONResponse(body)
    if "report.html" not in bundle.files:
        raise MedsynxError("not-found", "the bundle has no report")
    headers = {"Content-Security-Policy": CSP, "X-Content-Type-Options": "nosniff"}
    return HTMLResponse(bundle.files["report.html"], headers=headers)
