"""Adding people and checking their passwords."""

from __future__ import annotations

import re

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from sqlmodel import Session

from medsynx.errors import MedsynxError
from server.users.models import Role, User
from server.users.schemas import EMAIL

_hasher = PasswordHasher()
#: checked when nobody has the address, so that both answers take the same time
_NOBODY = _hasher.hash("nobody has this password")


def check_new(email: str, password: str) -> None:
    """Raise ``request-invalid`` for a bad address or a short password."""
    if not re.match(EMAIL, email.strip()) or len(password) < 10:
        raise MedsynxError("request-invalid", "give an e-mail address and a password of at least 10 characters")


def add(db: Session, email: str, password: str, role: Role) -> User:
    """Add a person. Raises ``file-exists`` for a taken address, and as :func:`check_new`."""
    check_new(email, password)
    email = email.strip().lower()
    if db.get(User, email):
        raise MedsynxError("file-exists", "that address has an account", hint="Sign in, or use another address.")
    user = User(email=email, password_hash=_hasher.hash(password), role=role)
    db.add(user)
    db.commit()
    return user


def check(db: Session, email: str, password: str) -> User:
    """The person with this address and password. Raises ``login-failed``, alike whether the address or the password is wrong."""
    user = db.get(User, email.strip().lower())
    try:
        _hasher.verify(user.password_hash if user else _NOBODY, password)
    except (Argon2Error, InvalidHashError):
        user = None
    if user is None:
        raise MedsynxError("login-failed", "no account with this address and password")
    return user
