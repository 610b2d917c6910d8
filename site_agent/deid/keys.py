"""The site's key: pseudonyms, UIDs and date shifts are HMACs under it, so re-runs agree and nobody without it can reverse them.

HMAC-SHA-256 (RFC 2104) with one label a purpose. A hash without a secret would not do: the identifiers of a hospital can all be tried.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from medsynx.errors import MedsynxError

ENVIRONMENT = "MEDSYNX_KEY"
LENGTH = 32


class SiteKey:
    """A secret and what is derived from it.

    Args:
        secret: at least 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) < LENGTH:
            raise MedsynxError("key-unusable", f"a key has at least {LENGTH} bytes, this one {len(secret)}")
        self._secret = secret

    @staticmethod
    def load(file: Path | None) -> SiteKey:
        """Read the key from a file (0600, or a mounted secret), else from the variable MEDSYNX_KEY (64 hex digits).

        Raises:
            MedsynxError: ``key-unusable`` when there is none, when it is short, or when others on this machine can read it.
        """
        if file is None:
            text = os.environ.get(ENVIRONMENT, "")
            try:
                return SiteKey(bytes.fromhex(text))
            except ValueError:
                raise MedsynxError("key-unusable", f"{ENVIRONMENT} does not hold hex digits") from None
        try:
            mode, secret = file.stat().st_mode, file.read_bytes()
        except OSError as error:
            raise MedsynxError("key-unusable", f"{file} cannot be read: {error.strerror}") from None
        if mode & 0o077 and not str(file).startswith(
            "/run/secrets/"
        ):  # a container's secret is 0444 on its own file system
            raise MedsynxError("key-unusable", f"others can read {file}", hint=f"Run `chmod 600 {file}`.")
        return SiteKey(secret)

    @staticmethod
    def create(file: Path) -> SiteKey:
        """Write a new key (0600) where no file is yet."""
        secret = secrets.token_bytes(LENGTH)
        try:
            with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as f:
                f.write(secret)
        except OSError as error:
            raise MedsynxError("key-unusable", f"{file} cannot be written: {error.strerror}") from None
        return SiteKey(secret)

    def mac(self, purpose: str, *values: str) -> bytes:
        """32 bytes bound to a purpose and to every value."""
        text = "\x1f".join([purpose, *(f"{len(v)}:{v}" for v in values)])
        return hmac.new(self._secret, text.encode("utf-8", "surrogateescape"), hashlib.sha256).digest()

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the key and say nothing about it."""
        return self.mac("fingerprint").hex()[:16]

    def subkey(self, purpose: str) -> bytes:
        """A 32-byte key for another algorithm."""
        return self.mac("subkey", purpose)

    def pseudonym(self, issuer: str, patient: str) -> str:
        """``P-`` and 80 bits for one patient of one issuer of identifiers."""
        return "P-" + self.mac("patient", issuer.strip(), patient.strip()).hex()[:20].upper()

    def uid(self, uid: str) -> str:
        """A UID under 2.25 (PS3.5 B.2) with 122 bits of the HMAC, shaped as a UUID."""
        b = bytearray(self.mac("uid", uid)[:16])
        b[6], b[8] = b[6] & 0x0F | 0x80, b[8] & 0x3F | 0x80
        return f"2.25.{int.from_bytes(b, 'big')}"

    def days(self, pseudonym: str) -> int:
        """How many days this patient's dates move into the past: 30 to 3,029, the same for all of a patient's files."""
        return 30 + int.from_bytes(self.mac("date", pseudonym)[:8], "big") % 3000
