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
    """A signed-in person, or a service with the one thing that its token opens (``scope``)."""

    name: str
    role: Role
    scope: service.Scope | None = None


def _principal(request: Request, db: Db, token: Annotated[str | None, Depends(_bearer)]) -> Principal:
    if not token:
        raise MedsynxError("token-invalid", "this needs an access token")
    if scope := service.scope_of(token):
        role = Role.COORDINATOR if scope == "coordinator" else Role.RESEARCHER
        return Principal(service.service_name(db, token), role, scope)
    user = db.get(User, service.subject(request.app.state.folder.secret(), token))
    if user is None:
        raise MedsynxError("token-invalid", "the account of this token is gone")
    return Principal(user.email, user.role)


def _allow(*roles: Role, scope: service.Scope | None = None) -> Callable[[Principal], Principal]:
    def check(who: Annotated[Principal, Depends(_principal)]) -> Principal:
        if who.scope and who.scope != scope:
            raise MedsynxError("forbidden", f"a service token of scope {who.scope} does not open this")
        if not who.scope and who.role not in roles:
            raise MedsynxError("forbidden", f"this needs the role {' or '.join(roles)}")
        return who

    return check


SignedIn = Annotated[Principal, Depends(_allow(*Role))]
Coordinator = Annotated[Principal, Depends(_allow(Role.COORDINATOR, Role.ADMIN))]
Admin = Annotated[Principal, Depends(_allow(Role.ADMIN))]
#: a coordinator, or the service token of a coordinator's run
Publisher = Annotated[Principal, Depends(_allow(Role.COORDINATOR, Role.ADMIN, scope="coordinator"))]
#: a coordinator, or the service token of whoever collects figures
Watcher = Annotated[Principal, Depends(_allow(Role.COORDINATOR, Role.ADMIN, scope="metrics"))]
