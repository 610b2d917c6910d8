"""Inviting, enrolling, rotating, revoking. A change of one site touches no other."""

from __future__ import annotations

import json
import re
import secrets
import uuid
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select, update

from medsynx.errors import MedsynxError
from medsynx.membership import NAME, SECONDS, Asked, Join, Keys, Settings, check, token_digest
from server.database import now
from server.enrolment.models import Invite, Member
from server.folder import ServerFolder


def set_address(folder: ServerFolder, url: str, ca: Path) -> str:
    """Keep where sites reach the federation and whose certificates it shows; returns the CA's fingerprint.

    Raises:
        MedsynxError: ``request-invalid`` for an address that is not ``https://HOST:PORT``, ``ca-invalid`` for a file without one CA certificate.
    """
    folder.secret()
    parts = urlsplit(url)
    try:
        sound = parts.scheme == "https" and parts.hostname and parts.port and parts.path in ("", "/")
    except ValueError:
        sound = False
    if not sound:
        raise MedsynxError("request-invalid", f"{url} is not of the form https://HOST:PORT")
    try:
        certificates = x509.load_pem_x509_certificates(ca.read_bytes())
        if len(certificates) != 1:
            raise ValueError
        certificates[0].extensions.get_extension_for_class(x509.BasicConstraints)
    except (OSError, ValueError, x509.ExtensionNotFound):
        raise MedsynxError("ca-invalid", f"{ca} does not hold one CA certificate") from None
    pem = certificates[0].public_bytes(ser.Encoding.PEM).decode()
    folder.federation.write_text(json.dumps({"url": url.rstrip("/"), "ca": pem}), "utf-8")
    return certificates[0].fingerprint(hashes.SHA256()).hex()


def address(folder: ServerFolder) -> tuple[str, str, str]:
    """URL, CA certificate (PEM) and its fingerprint. Raises ``coordinator-unset``."""
    try:
        kept = json.loads(folder.federation.read_text("utf-8"))
        pem = str(kept["ca"])
        return str(kept["url"]), pem, x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex()
    except (OSError, ValueError, KeyError, TypeError):
        raise MedsynxError("coordinator-unset", "the server does not know where sites reach the federation") from None


def invite(db: Session, site: str, expires: datetime, *, renews: bool = False) -> str:
    """A one-time token for a site of this name, shown this once.

    Args:
        renews: for a site that is enrolled and is to get new keys.

    Raises:
        MedsynxError: ``request-invalid`` for no site name, ``site-taken`` when it is enrolled (unless ``renews``), ``site-unknown`` when it is to be
            renewed and never was.
    """
    if not re.match(NAME, site):
        raise MedsynxError(
            "request-invalid", f"{site!r} is not a site name", hint="Lower case letters, digits, dashes."
        )
    member = db.get(Member, site)
    if renews and member is None:
        raise MedsynxError("site-unknown", f"no site {site} is enrolled")
    if not renews and member is not None and member.status == "enrolled":
        raise MedsynxError("site-taken", f"a site {site} is enrolled already")
    token = f"msj_{secrets.token_urlsafe(32)}"
    db.add(Invite(digest=token_digest(token), site=site, expires_at=expires, renews=renews or member is not None))
    db.commit()
    return token


def join(db: Session, asked: Join, superlink: str) -> Settings:
    """Enrol the site that took up an invitation, or give it new keys.

    Raises:
        MedsynxError: ``invite-invalid``, ``invite-expired``, ``invite-used``, ``proof-invalid``, ``site-taken``, ``identity-taken``.
    """
    digest = token_digest(asked.token)
    found = db.get(Invite, digest)
    if found is None or found.site != asked.site:
        raise MedsynxError("invite-invalid", f"this token is no invitation of a site {asked.site}")
    member = db.get(Member, asked.site)
    if found.taken_by is None and found.expires_at <= now():
        raise MedsynxError("invite-expired", f"this invitation of {asked.site} has expired")
    asked.keys.verify(asked.site, digest)
    if found.taken_by is not None:
        again = member is not None and member.node_key == found.taken_by == asked.keys.node_key
        if not again or member is None or member.status != "enrolled":
            raise MedsynxError("invite-used", f"this invitation of {asked.site} was used before")
        return settings(db, member, superlink)
    if member is not None and member.status == "enrolled" and not found.renews:
        raise MedsynxError("site-taken", f"a site {asked.site} is enrolled already")
    # Only one of two requests at once finds the token free.
    free = update(Invite).where(col(Invite.digest) == digest, col(Invite.taken_by).is_(None))
    if db.exec(free.values(taken_by=asked.keys.node_key)).rowcount != 1:
        db.rollback()
        raise MedsynxError("invite-used", f"this invitation of {asked.site} was used before")
    # The others of this name end with it: a forgotten one must not replace the site's keys later.
    others = update(Invite).where(col(Invite.site) == asked.site, col(Invite.taken_by).is_(None))
    db.exec(others.values(expires_at=now()))
    return settings(db, _put(db, asked.site, member, asked.keys), superlink)


def answer(db: Session, asked: Asked) -> Member:
    """The member behind a signed request, after what it asked was done. Each request counts once.

    Raises:
        MedsynxError: ``site-unknown``, ``proof-invalid``, ``identity-taken``.
    """
    member = db.get(Member, asked.site)
    if member is None or member.status != "enrolled":
        raise MedsynxError("site-unknown", f"no site {asked.site} is enrolled")
    if asked.action == "rotate" and asked.keys and asked.keys.identity == member.identity:
        asked.keys.verify(asked.site, "rotate")  # the answer got lost: these keys are in force already
        if asked.keys.node_key == member.node_key:
            return member
    check(member.identity, asked.words(), asked.signature)
    if abs((now() - asked.at).total_seconds()) > SECONDS:
        raise MedsynxError("proof-invalid", "the request was signed too long ago, or the site's clock is wrong")
    if member.asked_at is not None and asked.at <= member.asked_at:
        raise MedsynxError("proof-invalid", "the request was answered before")
    member.asked_at = asked.at
    if asked.action == "leave":
        member.status, member.changed_at = "left", now()
    if asked.action == "rotate":
        if asked.keys is None:
            raise MedsynxError("proof-invalid", "the request names no keys")
        asked.keys.verify(asked.site, "rotate")
        return _put(db, asked.site, member, asked.keys)
    db.add(member)
    db.commit()
    db.refresh(member)
    return member


def revoke(db: Session, site: str) -> None:
    """End a site's part in the federation. Raises ``site-unknown``."""
    member = db.get(Member, site)
    if member is None:
        raise MedsynxError("site-unknown", f"no site {site} is enrolled")
    member.status, member.changed_at = "revoked", now()
    db.add(member)
    for open_invite in db.exec(select(Invite).where(Invite.site == site, col(Invite.taken_by).is_(None))):
        db.delete(open_invite)
    db.commit()


def members(db: Session) -> list[Member]:
    """Every site that ever enrolled, by name."""
    return list(db.exec(select(Member).order_by(Member.site)))


def invited(db: Session) -> list[Invite]:
    """Invitations that can still be taken up."""
    return [i for i in db.exec(select(Invite).order_by(Invite.site)) if i.taken_by is None and i.expires_at > now()]


def settings(db: Session, member: Member, superlink: str) -> Settings:
    """What the site is told."""
    roster = {m.site: m.identity for m in members(db) if m.status == "enrolled"}
    return Settings(site=member.site, site_id=member.site_id, superlink=superlink, roster=roster)


def _put(db: Session, site: str, member: Member | None, keys: Keys) -> Member:
    """Put these keys in force for a site. The site id stays: it survives new keys and upgrades."""
    member = member or Member(site=site, site_id=uuid.uuid4().hex, identity="", node_key="")
    member.identity, member.node_key = keys.identity, keys.node_key
    member.status, member.changed_at = "enrolled", now()
    db.add(member)
    try:
        db.commit()
    except IntegrityError:
        db.rollback()
        raise MedsynxError("identity-taken", "another site has enrolled with one of these keys") from None
    db.refresh(member)
    return member
