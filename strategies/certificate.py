"""When the certificate that hospitals see ends: told in the service's log and by ``medsynx coordinator sites``, from a month before on."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from medsynx import files
from strategies.runtime import Tls

log = logging.getLogger("medsynx.coordinator")
SOON = timedelta(days=30)
EVERY_SECONDS = 3600.0
NOTICE = "certificate.notice"  #: file of the coordinator's folder: what ends when; empty while nothing ends soon


REMEDY = {
    "certificate": "put a new one of the same authority in its place and start the service again",
    "certificate authority": "hospitals have pinned it, and enrol anew under its successor",
}


def notice(ends: dict[str, datetime], now: datetime) -> str:
    """What ends within :data:`SOON`, and what is to be done; empty when nothing does."""
    return "; ".join(
        f"the {what} {f'ends in {(end - now).days} days' if end > now else 'has ended, so that no hospital gets in'}"
        f" ({end:%Y-%m-%d %H:%M} UTC): {REMEDY[what]}"
        for what, end in ends.items()
        if end - now < SOON
    )


class Expiry:
    """Keeps the notice of one coordinator's folder.

    Args:
        tls: what the service has started with, and serves until it ends.
    """

    def __init__(self, folder: Path, tls: Tls) -> None:
        self.folder, self._looked = folder, -EVERY_SECONDS
        self._told: str | None = None  # what an earlier process wrote may be over
        self.ends = {"certificate": _end(tls.cert), "certificate authority": _end(tls.ca)}

    def tend(self) -> None:
        """To be called now and then."""
        if time.monotonic() - self._looked < EVERY_SECONDS:
            return
        self._looked = time.monotonic()
        if (told := notice(self.ends, datetime.now(UTC))) != self._told:
            if told:
                log.warning("%s", told)
            with suppress(OSError):  # no room: the log has it
                files.write(self.folder / NOTICE, told)
                self._told = told


def read_notice(folder: Path) -> str:
    """What the service has noted; empty when nothing ends soon."""
    file = folder / NOTICE
    return file.read_text("utf-8") if file.exists() else ""


def _end(pem: Path) -> datetime:
    """The earliest end among the certificates of a file: one of them is the server's, others may lead to its authority."""
    return min(c.not_valid_after_utc for c in x509.load_pem_x509_certificates(pem.read_bytes()))
