"""Who this site is to the other sites: an Ed25519 key that never leaves, and the roster of everybody's public keys.

The roster lies in the site's folder; ``medsynx site roster`` installs it, after a person compared the keys. A study is approved under one roster. The
coordinator has no way to change either, so it cannot put itself between two sites or invent some.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medsynx import files
from medsynx.errors import MedsynxError
from medsynx.keys import read_secret

KEY, ROSTER = "identity.pem", "roster.json"


def make_identity(file: Path) -> None:
    """A new identity key (0600). Raises FileExistsError when there is one."""
    pem = Ed25519PrivateKey.generate().private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
        out.write(pem)


def identity(folder: Path, name: str = KEY) -> Ed25519PrivateKey:
    """The identity key. Raises ``policy-refused`` when it is missing or spoilt, ``key-exposed`` when others on this machine can read it."""
    file = folder / name
    if not file.exists():
        raise MedsynxError("policy-refused", f"{file} must exist with mode 0600")
    try:
        key = ser.load_pem_private_key(read_secret(file), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise MedsynxError("policy-refused", f"{file} is not an Ed25519 key")
    return key


def public_identity(folder: Path) -> bytes:
    """The public part of the identity key: 32 bytes."""
    return identity(folder).public_key().public_bytes_raw()


def write_roster(folder: Path, roster: Mapping[str, bytes]) -> None:
    """Install everybody's public identities, this site's among them. Studies approved under another roster must be approved again."""
    named = {s: base64.b64encode(k).decode() for s, k in sorted(roster.items())}
    files.write(folder / ROSTER, json.dumps(named, indent=1))


def read_roster(file: Path) -> dict[str, bytes]:
    """Site -> public identity. Raises ``roster-mismatch`` when there is none, it cannot be read, or one key stands for two sites."""
    try:
        raw = json.loads(file.read_text("utf-8"))
        roster = {str(site): base64.b64decode(key, validate=True) for site, key in raw.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise MedsynxError("roster-mismatch", f"{file} is missing or invalid") from None
    if any(len(key) != 32 for key in roster.values()) or len(set(roster.values())) != len(roster):
        raise MedsynxError("roster-mismatch", f"{file} does not hold one key a site")
    return roster
