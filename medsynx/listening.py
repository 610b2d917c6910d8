"""What a service needs before it listens, asked at once and told in words: a port that is free, a certificate with its key."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from pathlib import Path

from medsynx.errors import MedsynxError


def require_port(host: str, port: int) -> None:
    """Raise ``port-taken`` when this machine cannot listen there."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind) as probe:
            # as servers do: a connection that just ended is in nobody's way
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise MedsynxError("port-taken", f"nothing can listen on {host}:{port}: {error.strerror}") from None


def require_certificate(cert: Path, key: Path) -> ssl.SSLContext:
    """What serves with this certificate. Raises ``request-invalid`` unless these PEM files are one and its key."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(cert, key)
    except OSError as error:
        why = error.strerror if not isinstance(error, ssl.SSLError) else error.reason or "not PEM"
        raise MedsynxError(
            "request-invalid",
            f"{cert} and {key} are no certificate and its key ({why})",
            hint="Give the PEM file of a certificate and that of its own key, both readable by this account.",
        ) from None
    return server


def require_trust(cert: Path, key: Path, ca: Path, host: str) -> None:
    """Raise ``request-invalid`` unless who trusts this authority alone takes this certificate for the host: they shake hands, in memory."""
    server = require_certificate(cert, key)
    try:
        client = ssl.create_default_context(cafile=ca)
    except OSError:
        raise MedsynxError("request-invalid", f"{ca} is no certificate authority (PEM)") from None
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (client.wrap_bio(back, there, server_hostname=host), server.wrap_bio(there, back, server_side=True))
    try:
        for side in (*sides, *sides):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise MedsynxError(
            "request-invalid",
            f"who trusts {ca} does not take {cert} for {host}: {error.verify_message}",
            hint=f"Give the authority that signed the certificate, and a certificate of today that names {host} too.",
        ) from None
