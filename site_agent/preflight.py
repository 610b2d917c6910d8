"""What could keep this site from taking part, looked for before it does: one small check a problem, each with its own code and remedy.

A check returns a sentence on what is well, or raises the :class:`MedsynxError` that names the problem. It changes nothing and sends nothing of the
site.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from medsynx import __version__
from medsynx.errors import CODES, MedsynxError
from site_agent.enrolment import CA, NODE_KEY, SECRET, Enrolment
from site_agent.identity import KEY
from site_agent.line import Line, Seen, address, authority, fingerprints, proxy_for

AHEAD_SECONDS, BEHIND_SECONDS = 4, 290  #: Flower takes a signed time from 5 seconds ahead to 305 behind
FREE_BYTES = 2 * 2**30
SECRETS = ("site.key", KEY, NODE_KEY, SECRET)


@dataclass
class Bench:
    """What the checks look at.

    Attributes:
        folder: the site's folder.
        url: the coordinator's server.
        ca: PEM of the pinned authority, once the site is enrolled.
        fingerprint: of the authority, as told out of band, before it is.
    """

    folder: Path
    url: str
    ca: str | None = None
    fingerprint: str | None = None
    clock: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))

    @staticmethod
    def of(folder: Path, url: str | None, fingerprint: str | None) -> Bench:
        """Of an enrolled site, or of one that was told where to enrol. Raises ``not-enrolled`` when neither."""
        if url:
            return Bench(folder, url, None, fingerprint)
        record = Enrolment.present(folder)
        try:
            return Bench(folder, record.url, (folder / CA).read_text("utf-8"), fingerprint)
        except OSError:
            raise MedsynxError("not-enrolled", f"{folder / CA} is missing") from None

    @property
    def host(self) -> str:
        """The server's host."""
        return address(self.url)[0]

    @cached_property
    def heard(self) -> tuple[datetime, Seen, datetime]:
        """What the server shows to somebody who does not verify it, and this machine's time before and after."""
        return self.clock(), Line(self.url).about(), self.clock()

    @property
    def seen(self) -> Seen:
        """What the server shows."""
        return self.heard[1]


def keys(bench: Bench) -> str:
    """Secrets are for their owner only."""
    there = [bench.folder / name for name in SECRETS if (bench.folder / name).exists()]
    open_ = [f.name for f in there if f.stat().st_mode & 0o077 or f.stat().st_uid != os.getuid()]
    if open_:
        raise MedsynxError("key-exposed", f"others than this user can read or own {', '.join(open_)}")
    return f"{len(there)} secrets, readable by this user only"


def disk(bench: Bench) -> str:
    """There is room for runs and logs."""
    free = shutil.disk_usage(bench.folder).free
    if free < FREE_BYTES:
        raise MedsynxError("disk-low", f"{free / 2**30:.1f} GB free, at least {FREE_BYTES / 2**30:.0f} are needed")
    return f"{free / 2**30:,.0f} GB free"


def gpu(bench: Bench) -> str:
    """Which accelerators there are; none is needed."""
    if not (tool := shutil.which("nvidia-smi")):
        return "none found, and none is needed"
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "nvidia-smi does not answer: none will be used"
    return "; ".join(line.split(" (")[0] for line in listed.splitlines()) or "none found, and none is needed"


def proxy(bench: Bench) -> str:
    """Proxy variables can be used, if there are any."""
    Line(bench.url)
    found = proxy_for(bench.host)
    return f"through {found}" if found else "none for this host"


def dns(bench: Bench) -> str:
    """The server's name has an address; behind a proxy that is the proxy's to know."""
    if proxy_for(bench.host):
        return "left to the proxy"
    try:
        found = socket.getaddrinfo(bench.host, None, proto=socket.IPPROTO_TCP)
    except OSError:
        raise MedsynxError("dns-failed", f"no address is known for {bench.host}") from None
    return ", ".join(sorted({str(a[4][0]) for a in found}))


def port(bench: Bench) -> str:
    """The server's port can be reached."""
    _ = bench.seen
    return f"{bench.host}:{address(bench.url)[1]} answers"


def tls(bench: Bench) -> str:
    """Nobody stands between: the certificate is the pinned authority's."""
    shown, issuer = bench.seen.about.ca, bench.seen.issuer
    pin = fingerprints(bench.ca) if bench.ca else bench.fingerprint
    if pin is None:
        return f"not pinned yet: authority {fingerprints(shown)}, to be compared with what you were told"
    found = authority(bench.ca or shown, pin)
    details = [f"expected {pin}", f"seen     {fingerprints(shown)} (certificate issued by {issuer})"]
    if found is None:
        raise MedsynxError("ca-mismatch", "the server shows another certificate authority", details=details)
    try:
        Line(bench.url, bench.ca or shown).about()
    except MedsynxError as refusal:
        raise MedsynxError(refusal.code, refusal.message, hint=refusal.hint, details=details) from None
    return f"authority {pin[:16]}..., as pinned"


def clock(bench: Bench) -> str:
    """This machine's clock agrees with the server's well enough for signed requests."""
    before, seen, after = bench.heard
    if seen.date is None:
        raise MedsynxError("server-unwell", "the server does not tell its time")
    early, late = ((at - seen.date).total_seconds() for at in (before, after))
    off = max(early, min(0.0, late))  # at least: a slow answer is nobody's clock
    if not -BEHIND_SECONDS <= off <= AHEAD_SECONDS + 1:  # the server tells whole seconds
        raise MedsynxError(
            "clock-skewed", f"this machine is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} the server"
        )
    return f"within {max(1, round(abs(off)))} s of the server's"


def version(bench: Bench) -> str:
    """Site and server run releases that understand each other: the same major and minor number."""
    theirs = bench.seen.about.version
    if theirs.split(".")[:2] != __version__.split(".")[:2]:
        raise MedsynxError("version-differs", f"this site runs {__version__}, the server {theirs}")
    return f"{__version__} here, {theirs} there"


Check = Callable[[Bench], str]
HERE: tuple[Check, ...] = (keys, disk, gpu, proxy)
THERE: tuple[Check, ...] = (dns, port, tls, clock, version)  #: each needs those before it


@dataclass(frozen=True)
class Finding:
    """One check's outcome. ``code`` is None when it is well, and ``skipped`` when it could not be looked at."""

    check: str
    code: str | None
    says: str
    remedy: str = ""

    @property
    def problem(self) -> bool:
        """Whether something is to be done."""
        return self.code in CODES


def preflight(bench: Bench) -> list[Finding]:
    """Every check, in order. Once the server cannot be asked, what would have to ask it is skipped."""
    out = [_look(check, bench) for check in HERE]
    lost = out[-1].problem
    for check in THERE:
        out.append(Finding(check.__name__, "skipped", "not looked at") if lost else _look(check, bench))
        lost = lost or out[-1].problem
    return out


def _look(check: Check, bench: Bench) -> Finding:
    try:
        return Finding(check.__name__, None, check(bench))
    except MedsynxError as problem:
        return Finding(check.__name__, problem.code, "; ".join([problem.message, *problem.details]), problem.hint)
