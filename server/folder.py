"""The server's folder: database, token secret and bundles, for its owner only."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

from medsynx import files
from medsynx.errors import MedsynxError


class ServerFolder:
    """``server.sqlite``, ``token.secret`` (0600), ``federation.json`` (where sites reach it) and ``bundles/SHA256.zip``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def database(self) -> Path:
        """SQLite file."""
        return self.path / "server.sqlite"

    @property
    def federation(self) -> Path:
        """Where sites reach the federation, and its CA."""
        return self.path / "federation.json"

    def create(self) -> None:
        """Make the folder. Raises ``server-exists``."""
        if (self.path / "token.secret").exists():
            raise MedsynxError("server-exists", f"{self.path} is a server's folder already")
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)
        (self.path / "bundles").mkdir(exist_ok=True, mode=0o700)
        _write(self.path / "token.secret", secrets.token_bytes(32))
        _write(self.database, b"")

    def secret(self) -> bytes:
        """Key of the access tokens. Raises ``server-not-initialised``."""
        try:
            return (self.path / "token.secret").read_bytes()
        except OSError:
            raise MedsynxError("server-not-initialised", f"{self.path} is not a server's folder") from None

    def keep(self, bundle: bytes) -> str:
        """Store a bundle under the SHA-256 of its bytes, which is returned."""
        name = hashlib.sha256(bundle).hexdigest()
        target = self.bundle(name)
        if not target.exists():
            files.write(target, bundle, files.PRIVATE)
        return name

    def bundle(self, name: str) -> Path:
        """File of a stored bundle."""
        return self.path / "bundles" / f"{name}.zip"


def _write(file: Path, content: bytes) -> None:
    with os.fdopen(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
