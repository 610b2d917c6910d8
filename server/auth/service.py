"""Access tokens (PyJWT, one hour), service tokens and trusted signers."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import jwt
from sqlmodel import Session, select

from medsynx.bundle import fingerprint
from medsynx.errors import MedsynxError
from server.auth.models import ServiceToken, Signer
from server.database import now

ISSUER, AUDIENCE, ALGORITHM, SECONDS = "medsynx-server", "medsynx-api", "HS256", 3600
Scope = Literal["coordinator", "metrics"]
#: how a service token of each scope begins: it is part of what is hashed, so that a token opens what it was made for
PREFIXES: dict[Scope, str] = {"coordinator": "msx_", "metrics": "msm_"}


def issue(secret: bytes, email: str, *, seconds: int = SECONDS) -> str:
    """A signed access token for a person; it says who, not what they may do: the role is looked up at each request."""
    moment = datetime.now(UTC)
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": email, "iat": moment, "exp": moment + timedelta(seconds=seconds)}
    return jwt.encode(claims, secret, ALGORITHM)


def subject(secret: bytes, token: str) -> str:
    """Whose token it is. Raises ``token-invalid`` for anything expired, forged or not ours."""
    try:
        claims = jwt.decode(
            token,
            secret,
            [ALGORITHM],
            audience=AUDIENCE,
            issuer=ISSUER,
            options={"require": ["exp", "sub", "iat", "iss", "aud"]},
        )
    except jwt.ExpiredSignatureError:
        raise MedsynxError("token-invalid", "the access token has expired") from None
    except jwt.InvalidTokenError:
        raise MedsynxError("token-invalid", "the access token is not valid") from None
    return str(claims["sub"])


def new_service_token(db: Session, name: str, days: int, scope: Scope = "coordinator") -> str:
    """A service token, shown this once."""
    token = PREFIXES[scope] + secrets.token_urlsafe(32)
    db.add(ServiceToken(digest=_digest(token), name=name, expires_at=now() + timedelta(days=days)))
    db.commit()
    return token


def scope_of(token: str) -> Scope | None:
    """What a service token would open; None for an access token."""
    return next((scope for scope, prefix in PREFIXES.items() if token.startswith(prefix)), None)


def service_name(db: Session, token: str) -> str:
    """Name of a valid service token. Raises ``token-invalid``."""
    found = db.get(ServiceToken, _digest(token))
    if found is None or found.expires_at <= now():
        raise MedsynxError("token-invalid", "the service token is unknown or has expired")
    return found.name


def trust(db: Session, public_key: Path) -> str:
    """Accept bundles signed with this key; returns its fingerprint."""
    try:
        print_ = fingerprint(public_key.read_bytes())
    except OSError:
        hint = (
            "Give signing.pem.pub of the coordinator's folder; `medsynx coordinator serve` makes it at its first start."
        )
        raise MedsynxError("request-invalid", f"{public_key} cannot be read", hint=hint) from None
    if db.get(Signer, print_) is None:
        db.add(Signer(fingerprint=print_))
        db.commit()
    return print_


def trusted(db: Session) -> frozenset[str]:
    """Fingerprints of accepted signers; empty accepts nobody."""
    return frozenset(db.exec(select(Signer.fingerprint)))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
