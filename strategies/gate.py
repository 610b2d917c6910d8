"""What hospitals reach: the fleet endpoints, health, and the server's enrolment, on one port. Everything else is answered 403.

Flower's signature of a fleet request covers its time and not its content, and is good for five minutes. So the gate takes each signed time of a key
once: a request that is sent again, or its headers with another content, is refused.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

App = Callable[[Any, Any, Any], Awaitable[None]]
FLEET, HEALTH = "/v1/fleet/", "/health"
#: what of the server sites may ask; each request shows a one-time token or a signature
ENROLMENT = frozenset(
    {("GET", "/enrolment"), ("POST", "/enrolment")}
    | {("POST", f"/enrolment/{action}") for action in ("rotate", "leave", "roster")}
)
MAX_BODY = 16_384  #: bytes of an enrolment request
REMEMBERED = 500_000  #: signed times held at once; beyond that nothing is let in
WINDOW_SECONDS = TIMESTAMP_TOLERANCE + 3 * SYSTEM_TIME_TOLERANCE


class Once:
    """Remembers signed times for as long as Flower would take them again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.seen: dict[tuple[bytes, bytes], float] = {}  # oldest first

    def first(self, key: bytes, signed: bytes) -> bool:
        """Whether this key's signed time comes for the first time. False also when there is no room to remember it."""
        now = self.clock()
        for old in list(self._old(now)):
            del self.seen[old]
        if (key, signed) in self.seen or len(self.seen) >= REMEMBERED:
            return False
        self.seen[key, signed] = now
        return True

    def forget(self, key: bytes, signed: bytes) -> None:
        """A request that Flower found not to be signed by this key uses nothing up."""
        self.seen.pop((key, signed), None)

    def _old(self, now: float) -> Any:
        for pair, at in self.seen.items():
            if now - at <= WINDOW_SECONDS:
                return
            yield pair


def gate(app: App, server: httpx.AsyncClient | None = None) -> App:
    """The public side of the SuperLink's ``app``.

    Args:
        server: where enrolment is answered; without one it is forbidden too.
    """
    once = Once()

    async def fleet(scope: Any, receive: Any, send: Any) -> None:
        key, signed = _signed(scope["headers"])
        if not key or not signed:
            await _answer(send, 401, b"not signed")
        elif not once.first(key, signed):
            await _answer(send, 401, b"signed time was used before")
        else:

            async def watched(message: Any) -> None:
                if message["type"] == "http.response.start" and message["status"] == 401:
                    once.forget(key, signed)
                await send(message)

            await app(scope, receive, watched)

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
        plain = ".." not in path and "//" not in path
        if scope["type"] != "http":
            return
        if plain and path.startswith(FLEET):
            await fleet(scope, receive, send)
        elif path == HEALTH:
            await app(scope, receive, send)
        elif server is not None and (scope["method"], path) in ENROLMENT:
            await enrolment(scope, receive, send, server)
        else:
            await _answer(send, 403, b"forbidden")

    return public


def _signed(headers: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """Key and signed time of a request; empty when they are missing, given twice (whose first is Flower's?), spelt oddly or oversized."""
    keys = [v for n, v in headers if n.lower() == FLEET_HTTP_PUBLIC_KEY_HEADER.encode()]
    times = [v for n, v in headers if n.lower() == TIMESTAMP_HEADER.encode()]
    if len(keys) != 1 or len(times) != 1 or len(keys[0]) > 1000 or len(times[0]) > 64:
        return b"", b""
    try:
        return base64.b64decode(keys[0], validate=True), times[0]
    except binascii.Error:
        return b"", b""


async def _answer(send: Any, status: int, body: bytes, kind: str = "text/plain") -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
