"""This site's line to the coordinator's server: HTTPS outwards, certificates of the pinned authority only, and what is wrong when it fails."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from pydantic import BaseModel, ValidationError

from medsynx.errors import CODES, MedsynxError
from medsynx.membership import About, Settings

SECONDS = 20.0
NOT_NOW = (9, 10)  #: OpenSSL's: a certificate that is not valid yet, or not any more
Answer = TypeVar("Answer", bound=BaseModel)


@dataclass(frozen=True)
class Seen:
    """What a server showed: what it says of itself, its clock, and who issued its certificate."""

    about: About
    date: datetime | None
    issuer: str


class Line:
    """Asks one server.

    Args:
        url: ``https://HOST:PORT``.
        ca: PEM of the pinned authority; without it the server is not verified, which is good for :meth:`about` alone.

    Raises:
        MedsynxError: ``request-invalid`` for another kind of URL, ``proxy-unusable`` for proxy variables that cannot be read, ``ca-invalid`` for a
            spoilt ``ca``.
    """

    def __init__(self, url: str, ca: str | None = None) -> None:
        self.host, self.port = address(url)
        self.pinned = ca is not None
        context = ssl.create_default_context(cafile=None) if ca is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca is None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        else:
            try:
                context.load_verify_locations(cadata=ca)
            except ssl.SSLError:
                raise MedsynxError("ca-invalid", "the pinned certificate authority cannot be read") from None
        try:  # proxy variables of the environment count, as they do for Flower
            self.client = httpx.Client(base_url=f"https://{self.host}:{self.port}", verify=context, timeout=SECONDS)
        except (ValueError, ImportError, httpx.InvalidURL):
            raise MedsynxError("proxy-unusable", "the proxy variables of the environment cannot be used") from None

    def about(self) -> Seen:
        """What the server says of itself. Raises as :meth:`ask`."""
        answer = self._request("GET", "/enrolment")
        raw = answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert(True)
        issuer = x509.load_der_x509_certificate(raw).issuer.rfc4514_string() if raw else "unknown"
        try:
            date = parsedate_to_datetime(answer.headers.get("date", ""))
        except ValueError:
            date = None
        return Seen(_parsed(answer, About), date, issuer)

    def ask(self, path: str, body: BaseModel) -> Settings:
        """Send a request that shows a token or a signature.

        Raises:
            MedsynxError: the server's own refusal, or ``dns-failed``, ``port-closed``, ``ca-mismatch``, ``proxy-unusable``, ``server-unwell``.
        """
        if not self.pinned:
            raise ValueError("nothing is said to a server that was not verified")
        return _parsed(self._request("POST", path, body.model_dump(mode="json")), Settings)

    def _request(self, method: str, path: str, body: object = None) -> httpx.Response:
        try:
            return self.client.request(method, path, json=body) if body else self.client.request(method, path)
        except httpx.HTTPError as error:
            raise self._trouble(error) from None

    def _trouble(self, error: httpx.HTTPError) -> MedsynxError:
        """What stands between this site and the server."""
        causes: list[BaseException] = []
        cause: BaseException | None = error
        while cause is not None and cause not in causes:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        at = f"{self.host}:{self.port}"
        if isinstance(error, httpx.ProxyError):
            return MedsynxError("proxy-unusable", f"the proxy does not let this site through to {at}")
        if any(isinstance(c, socket.gaierror) for c in causes) and not proxy_for(self.host):
            return MedsynxError("dns-failed", f"no address is known for {self.host}")
        if any(isinstance(c, ssl.SSLCertVerificationError) and c.verify_code in NOT_NOW for c in causes):
            hint = "Tell the coordinator, whose certificate has ended; here there is nothing to do but to look whether the clock is right (`date`)."
            return MedsynxError(
                "server-unwell", f"the certificate {at} shows is not valid by this machine's clock", hint=hint
            )
        if any(isinstance(c, ssl.SSLCertVerificationError) for c in causes):
            return MedsynxError(
                "ca-mismatch", f"the certificate {at} shows is not one of the pinned authority for this host"
            )
        if any(isinstance(c, ssl.SSLError) for c in causes):
            return MedsynxError("server-unwell", f"{at} does not speak TLS as it should")
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and (found := proxy_for(self.host)):
            return MedsynxError("proxy-unusable", f"the proxy {found} cannot be reached")
        if any(isinstance(c, ConnectionResetError | BrokenPipeError) for c in causes):  # in the handshake: it listens
            return MedsynxError("server-unwell", f"{at} broke off before it spoke TLS")
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return MedsynxError("port-closed", f"{at} cannot be reached: refused, filtered or not listening")
        return MedsynxError("server-unwell", f"{at} broke off ({type(error).__name__})")


def proxy_for(host: str) -> str | None:
    """HOST:PORT of the proxy that requests to ``host`` take by the environment."""
    proxies = getproxies()
    found = proxies.get("https") or proxies.get("all")
    return None if not found or proxy_bypass(host) else found.rpartition("@")[2].rpartition("//")[2]


def address(url: str) -> tuple[str, int]:
    """Host and port of ``https://HOST[:PORT]``. Raises ``request-invalid``."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or 443
    except ValueError:
        host, port = None, 0
    if parts.scheme != "https" or not host or parts.path not in ("", "/"):
        raise MedsynxError("request-invalid", f"{url} is not of the form https://HOST:PORT")
    return host, port


def authority(pem: str, fingerprint: str) -> x509.Certificate | None:
    """The CA certificate of this SHA-256 fingerprint (hex, any case, colons or spaces between) in ``pem``, if it holds it."""
    wanted = "".join(fingerprint.split()).replace(":", "").lower()
    try:
        shown = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        return None
    return next((c for c in shown if c.fingerprint(hashes.SHA256()).hex() == wanted), None)


def fingerprints(pem: str) -> str:
    """Fingerprints of the certificates in ``pem``, for people to compare."""
    try:
        return ", ".join(c.fingerprint(hashes.SHA256()).hex() for c in x509.load_pem_x509_certificates(pem.encode()))
    except ValueError:
        return "none"


def _parsed(answer: httpx.Response, kind: type[Answer]) -> Answer:
    try:
        raw = answer.json()
        if answer.is_success:
            return kind.model_validate(raw)
        if raw["code"] in CODES:
            raise MedsynxError(raw["code"], "".join(c for c in str(raw["detail"])[:300] if c.isprintable()))
    except (ValueError, ValidationError, KeyError, TypeError):
        pass
    raise MedsynxError(
        "server-unwell", f"the server answered {answer.status_code}, and nothing this release understands"
    )
