"""What hospitals reach: the fleet endpoints, health, and the server's enrolment, on one port. Everything else is answered 403.

Flower's signature of a fleet request covers its time and not its content, and is good for five minutes. So the gate takes each signed time of a key
once: a request that is sent again, or its headers with another content, is refused. What has no signature is refused before Flower reads it, and
whoever made a key of their own and signed with it uses nothing up: a key counts as a site's once Flower has done what it asked.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

App = Callable[[Any, Any, Any], Awaitable[None]]
HEALTH = "/health"
FLEET = frozenset(route for route in PROTOBUF_REQUEST_TYPES if route[1].startswith("/v1/fleet/"))  #: method and path
#: what of the server sites may ask; each request shows a one-time token or a signature
ENROLMENT = frozenset(
    {("GET", "/enrolment"), ("POST", "/enrolment")}
    | {("POST", f"/enrolment/{action}") for action in ("rotate", "leave", "roster")}
)
MAX_BODY = 16_384  #: bytes of an enrolment request
#: bytes of a fleet request, which Flower holds in memory before it knows whose it is. A model update of any size comes in objects of 5 MiB.
MAX_FLEET_BODY = 64 * 2**20
#: signed times of one key held at once: 60 requests a second for as long as they are held, 2.4 MB; beyond that this key waits
REMEMBERED = 20_000
WINDOW_SECONDS = TIMESTAMP_TOLERANCE + 3 * SYSTEM_TIME_TOLERANCE


class Once:
    """Remembers signed times for as long as Flower would take them again. Each key has room of its own, so that none can fill another's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.seen: dict[bytes, dict[bytes, float]] = {}  # each key's, oldest first

    def refusal(self, key: bytes, signed: bytes) -> tuple[int, bytes] | None:
        """Remember this key's signed time; status and text when it came before or the key has no room left."""
        now, times = self.clock(), self.seen.setdefault(key, {})
        while times and now - times[oldest := next(iter(times))] > WINDOW_SECONDS:
            del times[oldest]
        if signed in times:
            return 401, b"signed time was used before"
        if len(times) >= REMEMBERED:
            return 429, b"too many requests of this key"
        times[signed] = now
        return None

    def forget(self, key: bytes, signed: bytes) -> None:
        """A request that was not a site's uses nothing up, nor does its key."""
        times = self.seen.get(key, {})
        times.pop(signed, None)
        if not times:
            self.seen.pop(key, None)


def gate(app: App, server: httpx.AsyncClient | None = None) -> App:
    """The public side of the SuperLink's ``app``.

    Args:
        server: where enrolment is answered; without one it is forbidden too.
    """
    once = Once()
    sites: set[bytes] = set()  # keys with which Flower has done something

    async def fleet(scope: Any, receive: Any, send: Any) -> None:
        if wrong := _malformed(scope["headers"]):
            await _answer(send, *wrong)
            return
        key, signed = _signed(scope["headers"])
        if not key or not signed:
            await _answer(send, 401, b"not signed")
        elif wrong := once.refusal(key, signed):
            await _answer(send, *wrong)
        else:
            status = 500

            async def watched(message: Any) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    if status < 400:
                        sites.add(key)
                await send(message)

            try:
                await app(scope, receive, watched)
            finally:
                if status == 401 or key not in sites:
                    once.forget(key, signed)

    async def enrolment(scope: Any, receive: Any, send: Any, server: httpx.AsyncClient) -> None:
        body, more = b"", True
        while more and len(body) <= MAX_BODY:
            part = await receive()
            body, more = body + part.get("body", b""), bool(part.get("more_body"))
        if len(body) > MAX_BODY:
            await _answer(send, 413, b"too large")
            return
        try:
            reply = await server.request(
                scope["method"], scope["path"], content=body, headers={"content-type": "application/json"}
            )
        except httpx.HTTPError:
            await _answer(send, 502, b"the server does not answer")
            return
        await _answer(send, reply.status_code, reply.content, reply.headers.get("content-type", "text/plain"))

    async def public(scope: Any, receive: Any, send: Any) -> None:
        path = str(scope.get("path", ""))
        if scope["type"] != "http":
            return
        if (scope["method"], path) in FLEET:
            await fleet(scope, receive, send)
        elif path == HEALTH:
            await app(scope, receive, send)
        elif server is not None and (scope["method"], path) in ENROLMENT:
            await enrolment(scope, receive, send, server)
        else:
            await _answer(send, 403, b"forbidden")

    return public


def _only(headers: list[tuple[bytes, bytes]], name: str, longest: int) -> bytes:
    """A header's value; empty when it is missing, given twice (whose first is Flower's?) or oversized."""
    values = [v for n, v in headers if n.lower() == name.encode()]
    return values[0] if len(values) == 1 and len(values[0]) <= longest else b""


def _malformed(headers: list[tuple[bytes, bytes]]) -> tuple[int, bytes] | None:
    """Status and text for what Flower would refuse unread, or what is too large to be read."""
    if _only(headers, "content-type", 100).partition(b";")[0].strip().lower() != PROTOBUF_MEDIA_TYPE.encode():
        return 415, b"not protobuf"
    length = _only(headers, "content-length", 12)
    if not length.isdigit() or any(n.lower() == b"transfer-encoding" for n, _ in headers):
        return 411, b"no length"
    return (413, b"too large") if int(length) > MAX_FLEET_BODY else None


def _signed(headers: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Key and time of a request that this key signed; empty when it did not, or a header is not as it should be."""
    time_ = _only(headers, TIMESTAMP_HEADER, 64)
    try:
        key = base64.b64decode(_only(headers, FLEET_HTTP_PUBLIC_KEY_HEADER, 1000), validate=True)
        signature = base64.b64decode(_only(headers, FLEET_HTTP_SIGNATURE_HEADER, 1000), validate=True)
        sound = verify_signature(bytes_to_public_key(key), time_, signature)
    except (binascii.Error, ValueError, TypeError, AttributeError, UnsupportedAlgorithm):  # also keys of another kind
        sound = False
    return (key, time_) if sound else (b"", b"")


async def _answer(send: Any, status: int, body: bytes, kind: str = "text/plain") -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
