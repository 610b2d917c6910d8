"""Keys on disk: made where they are used, for their owner's eyes only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec

from medsynx.errors import MedsynxError


def make_node_key(file: Path) -> bytes:
    """A SuperNode's P-384 key in OpenSSH form (0600); returns the public key as PEM, as the SuperLink keeps it."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_secret(file, key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.OpenSSH, ser.NoEncryption()))
    return public_pem(key.public_key())


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as the SuperLink keeps it and the SuperNode sends it."""
    return key.public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)


def make_secret(file: Path) -> Path:
    """32 random bytes (0600)."""
    write_secret(file, secrets.token_bytes(32))
    return file


def read_secret(file: Path) -> bytes:
    """A secret's bytes. Raises ``key-exposed`` when others on this machine can read it, and what opening it raises."""
    if file.stat().st_mode & 0o077:
        raise MedsynxError("key-exposed", f"{file} must have mode 0600")
    return file.read_bytes()


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner can enter; one that is there and is open to others is closed to them."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


def write_secret(file: Path, content: bytes) -> None:
    """A file only its owner can read, from its first byte on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
        out.write(content)
