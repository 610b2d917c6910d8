"""Every error as RFC 9457 ``application/problem+json`` with MedSynX's code and remedy."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from slowapi.errors import RateLimitExceeded
from starlette.exceptions import HTTPException

from medsynx.errors import CODES, MedsynxError

#: code -> HTTP status; whatever is not here is the request's fault in general (400).
STATUS = {
    "login-failed": 401,
    "token-invalid": 401,
    "forbidden": 403,
    "not-found": 404,
    "not-released": 409,
    "gate-closed": 409,
    "file-exists": 409,
    "invite-invalid": 403,
    "invite-expired": 403,
    "invite-used": 403,
    "proof-invalid": 403,
    "site-unknown": 404,
    "site-taken": 409,
    "identity-taken": 409,
    "coordinator-unset": 503,
    "request-invalid": 422,
    "not-rows": 422,
    "not-images": 422,
    "too-many-requests": 429,
    "server-not-initialised": 503,
}
MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str


#: for routes' ``responses``: documents the errors everybody can get.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {}}}
    for status in (401, 403, 404, 409, 422)
}


def problem(code: str, detail: str, hint: str | None = None, status: int | None = None) -> JSONResponse:
    """A problem response; ``status`` is the code's when omitted."""
    status = status or STATUS.get(code, 400)
    body = Problem(
        type=f"urn:medsynx:problem:{code}",
        title=code.replace("-", " "),
        status=status,
        detail=detail,
        code=code,
        hint=hint or CODES[code][1],
    )
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body.model_dump(), status, headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Register the handlers."""

    @app.exception_handler(MedsynxError)
    def refused(request: Request, error: MedsynxError) -> JSONResponse:
        return problem(error.code, error.message, error.hint)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        detail = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return problem("request-invalid", detail)

    @app.exception_handler(RateLimitExceeded)
    def limited(request: Request, error: RateLimitExceeded) -> JSONResponse:
        return problem("too-many-requests", "too many attempts from this address")

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return problem("not-found", f"there is no {request.url.path}")
        answer = problem("request-invalid", str(error.detail), status=error.status_code)
        answer.headers.update(error.headers or {})
        return answer
