"""A back-up of a site's folder: one tar file of what cannot be made again, each database as of one moment."""

from __future__ import annotations

import io
import sqlite3
import tarfile
import tempfile
from pathlib import Path

from medsynx.errors import MedsynxError
from medsynx.files import PRIVATE, replacing
from site_agent.policy import SiteFolder

BOOKS = ("ledger.sqlite", "audit.sqlite", "patients.sqlite")
MEMBERSHIP = (
    "enrolment.json",
    "ca.pem",
    "node.key",
    "executor.secret",
)  #: as site_agent.enrolment calls them, which this must not import
FILES = ("site.yaml", "site.key", "identity.pem", "roster.json", *MEMBERSHIP)


def write_backup(site: Path, file: Path) -> int:
    """Write the back-up (0600) whole or not at all; returns how many files are in it. Raises ``policy-refused``, ``file-exists``, ``disk-full``."""
    SiteFolder(site).policy()
    if file.exists():
        raise MedsynxError("file-exists", f"{file} exists")
    owner = site.stat()

    def owned(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        """Belongs to whom the folder belongs to, whoever makes the back-up; by number, for names differ between machines."""
        entry.uid, entry.gid, entry.uname, entry.gname = owner.st_uid, owner.st_gid, "", ""
        return entry

    try:
        with replacing(file, PRIVATE) as out, tarfile.open(fileobj=out, mode="w") as tar:
            for name in (n for n in BOOKS if (site / n).exists()):
                data = _snapshot(site / name, file.parent)
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), 0o600
                tar.addfile(owned(entry), io.BytesIO(data))
            for path in (site / n for n in (*FILES, "approvals")):
                if path.exists():
                    tar.add(path, path.name, filter=owned)
            count = len(tar.getmembers())
    except OSError as error:
        raise MedsynxError("disk-full", f"{file} cannot be written: {error.strerror}") from None
    return count


def _snapshot(database: Path, near: Path) -> bytes:
    """The database between two transactions, whoever writes meanwhile."""
    with tempfile.TemporaryDirectory(dir=near) as folder:
        copy = Path(folder) / database.name
        source, target = sqlite3.connect(database), sqlite3.connect(copy)
        try:
            source.backup(target)
        finally:
            source.close()
            target.close()
        return copy.read_bytes()
