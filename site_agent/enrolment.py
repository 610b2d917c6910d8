"""This site's membership of a federation: joining, new keys, leaving, and the roster as the coordinator tells it.

Private keys are made here and never leave. New ones wait beside the old (``*.new``) until the server has taken their public halves, so that whatever
is cut off is finished by the same command again. ``enrolment.json`` says where the federation is; ``ca.pem`` is the only authority believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from medsynx import files
from medsynx.errors import MedsynxError
from medsynx.keys import make_node_key, make_secret, read_secret
from medsynx.membership import Asked, Join, Keys, Settings, decode, token_digest
from site_agent.identity import KEY, identity, make_identity
from site_agent.line import Line, authority, fingerprints
from site_agent.policy import SiteFolder

RECORD, CA, NODE_KEY, SECRET, NEW = "enrolment.json", "ca.pem", "node.key", "executor.secret", ".new"


class Enrolment(BaseModel):
    """``enrolment.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    url: str
    site: str
    site_id: str
    superlink: str = Field(pattern=r"^[^/@\s]+:\d{1,5}$")
    enrolled_at: AwareDatetime
    left_at: AwareDatetime | None = None

    @staticmethod
    def of(folder: Path) -> Enrolment:
        """Raises ``not-enrolled`` also for a spoilt file."""
        try:
            return Enrolment.model_validate_json((folder / RECORD).read_text("utf-8"))
        except (OSError, ValueError, ValidationError):
            raise MedsynxError("not-enrolled", f"{folder} is no site of a federation") from None

    @staticmethod
    def present(folder: Path) -> Enrolment:
        """Of a site that has not left. Raises ``not-enrolled``."""
        found = Enrolment.of(folder)
        if found.left_at:
            raise MedsynxError("not-enrolled", f"site {found.site} left the federation on {found.left_at:%Y-%m-%d}")
        return found

    def keep(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        files.write(folder / RECORD, self.model_dump_json(indent=1))


def pinned(url: str, fingerprint: str) -> str:
    """PEM of the server's authority, if it is the one whose SHA-256 fingerprint was given out of band.

    Raises:
        MedsynxError: ``ca-mismatch`` with what was expected and what was seen, and what :class:`Line` raises.
    """
    seen = Line(url).about()
    found = authority(seen.about.ca, fingerprint)
    if found is None:
        raise MedsynxError(
            "ca-mismatch",
            "the server's certificate authority is not the one you were told",
            details=[f"expected {fingerprint}", f"seen     {fingerprints(seen.about.ca)} (issuer {seen.issuer})"],
        )
    return found.public_bytes(ser.Encoding.PEM).decode()


def enrol(folder: SiteFolder, url: str, token: str, fingerprint: str) -> Settings:
    """Join the federation at ``url`` with a one-time token, or with another token renew the node key.

    Raises:
        MedsynxError: ``ca-mismatch``, the server's refusals (``invite-...``, ``site-taken``, ``identity-taken``), what :class:`Line` raises.
    """
    path, site = folder.path, folder.policy().site
    ca = pinned(url, fingerprint)
    if not (path / KEY).exists():
        make_identity(path / KEY)
    keys = Keys.prove(site, token_digest(token), identity(path), _next_node_key(path))
    told = Line(url, ca).ask("/enrolment", Join(token=token, site=site, keys=keys))
    if told.site != site:
        raise MedsynxError("server-unwell", f"the server enrolled {told.site} in place of {site}")
    try:
        record = Enrolment(
            url=url, site=site, site_id=told.site_id, superlink=told.superlink, enrolled_at=datetime.now(UTC)
        )
    except ValidationError:
        raise MedsynxError("server-unwell", "the server named no SuperLink") from None
    files.write(path / CA, ca)
    if not (path / SECRET).exists():  # an agent that runs knows it
        make_secret(path / SECRET)
    record.keep(path)
    _install(path, NODE_KEY)
    return told


def rotate(folder: SiteFolder) -> Settings:
    """New identity and node key, signed for by the old identity. Other sites must get to know the new identity.

    Raises:
        MedsynxError: ``not-enrolled``, ``proof-invalid``, ``site-unknown`` (revoked), what :class:`Line` raises.
    """
    path, record = folder.path, Enrolment.present(folder.path)
    if not (path / f"{KEY}{NEW}").exists():
        make_identity(path / f"{KEY}{NEW}")
    keys = Keys.prove(record.site, "rotate", identity(path, f"{KEY}{NEW}"), _next_node_key(path))
    told = _line(path, record).ask("/enrolment/rotate", Asked.sign("rotate", record.site, identity(path), keys))
    _install(path, KEY)
    _install(path, NODE_KEY)
    return told


def leave(folder: SiteFolder) -> None:
    """Leave the federation: nothing is accepted from here on, whether the coordinator can be told or not.

    Raises:
        MedsynxError: what :class:`Line` raises when it could not be told; run it again then.
    """
    path, record = folder.path, Enrolment.of(folder.path)
    record.model_copy(update={"left_at": record.left_at or datetime.now(UTC)}).keep(path)
    try:
        _line(path, record).ask("/enrolment/leave", Asked.sign("leave", record.site, identity(path)))
    except MedsynxError as refusal:
        if refusal.code != "site-unknown":  # it knows already
            raise


def fetch_roster(folder: SiteFolder) -> dict[str, bytes]:
    """Site -> public identity as the coordinator tells it: to be shown and confirmed, never trusted.

    Raises:
        MedsynxError: ``not-enrolled``, ``roster-mismatch`` for one that holds no keys, what :class:`Line` raises.
    """
    record = Enrolment.present(folder.path)
    told = _line(folder.path, record).ask("/enrolment/roster", Asked.sign("roster", record.site, identity(folder.path)))
    try:
        return {site: decode(key) for site, key in told.roster.items()}
    except ValueError:
        raise MedsynxError("roster-mismatch", "the coordinator's roster cannot be read") from None


def compared(new: Mapping[str, bytes], old: Mapping[str, bytes]) -> dict[str, str]:
    """Site -> ``new``, ``changed``, ``gone`` or nothing, beside the roster that is installed."""
    marks = {s: "" if old.get(s) == k else "changed" if s in old else "new" for s, k in new.items()}
    return {**marks, **{s: "gone" for s in old if s not in new}}


def _line(path: Path, record: Enrolment) -> Line:
    try:
        return Line(record.url, (path / CA).read_text("utf-8"))
    except OSError:
        raise MedsynxError("not-enrolled", f"{path / CA} is missing") from None


def _next_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The node key that waits to be taken, made when there is none."""
    file = path / f"{NODE_KEY}{NEW}"
    if not file.exists():
        make_node_key(file)
    return read_node_key(file)


def read_node_key(file: Path) -> ec.EllipticCurvePrivateKey:
    """Raises ``not-enrolled`` when it is missing or spoilt, ``key-exposed``."""
    try:
        key = ser.load_ssh_private_key(read_secret(file), None)
    except (OSError, ValueError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise MedsynxError("not-enrolled", f"{file} is missing or no node key")
    return key


def _install(path: Path, name: str) -> None:
    (path / f"{name}{NEW}").replace(path / name)
