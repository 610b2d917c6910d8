"""``/enrolment``: what hospitals ask without an account. They show a one-time token or sign with their identity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated
from urllib.parse import urlsplit

import limits
from fastapi import APIRouter, Depends, Request

from medsynx import __version__
from medsynx.errors import MedsynxError
from medsynx.membership import About, Action, Asked, Join, Settings
from server.auth.principal import Publisher
from server.auth.routes import limiter
from server.database import Db
from server.enrolment import service
from server.enrolment.schemas import MemberOut
from server.problems import RESPONSES

FAILURES = limits.parse("60/minute")  #: of requests in one site's name
router = APIRouter(prefix="/enrolment", tags=["enrolment"], responses=RESPONSES)


def _superlink(request: Request) -> str:
    return urlsplit(service.address(request.app.state.folder)[0]).netloc


SuperLink = Annotated[str, Depends(_superlink)]


@contextmanager
def _failures_counted(site: str) -> Iterator[None]:
    """Say no more than ``too-many-requests`` to whoever goes on failing in a site's name.

    What a token or a signature opens is never held up, or junk would hold it up: all requests come from one address, the gate's.
    """
    try:
        yield
    except MedsynxError:
        if not limiter.limiter.hit(FAILURES, "enrolment", site):
            raise MedsynxError("too-many-requests", f"too many failed requests in the name of {site}") from None
        raise


@router.get("", summary="Who is this server")
def about(request: Request) -> About:
    """Its release and its certificate authority, which a site compares with the fingerprint it was given."""
    return About(version=__version__, ca=service.address(request.app.state.folder)[1])


@router.post("", status_code=201, summary="Take up an invitation")
def join(asked: Join, db: Db, superlink: SuperLink) -> Settings:
    """Register a site's public keys under a one-time token."""
    with _failures_counted(asked.site):
        return service.join(db, asked, superlink)


@router.post("/{action}", summary="What an enrolled site asks: rotate, leave or roster")
def ask(action: Action, asked: Asked, db: Db, superlink: SuperLink) -> Settings:
    """Put new keys in force, end the membership, or see the roster. Signed by the site's identity; counts once."""
    if asked.action != action:
        raise MedsynxError("proof-invalid", "the request was signed for another purpose")
    with _failures_counted(asked.site):
        return service.settings(db, service.answer(db, asked), superlink)


@router.get("/sites", summary="List enrolled sites")
def sites(who: Publisher, db: Db) -> list[MemberOut]:
    """Every site that ever enrolled, for the coordinator and its services."""
    return [MemberOut.model_validate(m.model_dump()) for m in service.members(db)]
