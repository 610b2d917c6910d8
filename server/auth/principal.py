"""Who a request comes from, and the roles routes ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import OAuth2PasswordBearer

from medsynx.errors import MedsynxError
from server.auth import service
from server.database import Db
from server.users.models import Role, User

_bearer = OAuth2PasswordBearer(tokenUrl="/auth/token", auto_error=False)


@dataclass(frozen=True)
class Principal:
    """A signed-in person, or a coordinator's run (``service``)."""

    name: str
    role: Role
    service: bool = False


def _principal(request: Request, db: Db, token: Annotated[str | None, Depends(_bearer)]) -> Principal:
    if not token:
        raise MedsynxError("token-invalid", "this needs an access token")
    if token.startswith(service.PREFIX):
        return Principal(service.service_name(db, token), Role.COORDINATOR, service=True)
    user = db.get(User, service.subject(request.app.state.folder.secret(), token))
    if user is None:
        raise MedsynxError("token-invalid", "the account of this token is gone")
    return Principal(user.email, user.role)


def _allow(*roles: Role, service: bool = False) -> Callable[[Principal], Principal]:
    def check(who: Annotated[Principal, Depends(_principal)]) -> Principal:
        if who.role not in roles or (who.service and not service):
            raise MedsynxError("forbidden", f"this needs the role {' or '.join(roles)}")
        return who

    return check


SignedIn = Annotated[Principal, Depends(_allow(*Role))]
Coordinator = Annotated[Principal, Depends(_allow(Role.COORDINATOR, Role.ADMIN))]
Admin = Annotated[Principal, Depends(_allow(Role.ADMIN))]
#: a coordinator, or the service token of a coordinator's run
Publisher = Annotated[Principal, Depends(_allow(Role.COORDINATOR, Role.ADMIN, service=True))]
