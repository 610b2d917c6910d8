"""``/auth/token``."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.security import OAuth2PasswordRequestForm
from slowapi import Limiter
from slowapi.util import get_remote_address

from server.auth import service
from server.auth.schemas import AccessToken
from server.database import Db
from server.problems import RESPONSES
from server.users import service as users

LOGINS = "10/minute"
limiter = Limiter(key_func=get_remote_address)
router = APIRouter(prefix="/auth", tags=["auth"], responses=RESPONSES)


@router.post("/token", summary="Sign in")
@limiter.limit(LOGINS)
def token(request: Request, form: Annotated[OAuth2PasswordRequestForm, Depends()], db: Db) -> AccessToken:
    """Exchange an e-mail address (``username``) and a password for an access token that is valid for an hour."""
    user = users.check(db, form.username, form.password)
    issued = service.issue(request.app.state.folder.secret(), user.email)
    return AccessToken(access_token=issued, expires_in=service.SECONDS, role=user.role)
