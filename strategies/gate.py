"""What hospitals reach: the fleet endpoints, health, and the server's enrolment, on one port. Everything else is answered 403.

Flower's signature of a fleet request covers its time and not its content, and is good for five minutes. So the gate takes each signed time of a key
once: a request that is sent again, or its headers with another content, is refused. What has no signature is refused before Flower reads it, and
whoever made a key of their own and signed with it uses nothing up: a key counts as a site's once Flower has done what it asked.

Flower does some requests once: it hands a message out, announces a reply, stores an object. A site whose line broke off before the answer asks again,
and Flower would have no message for it, or say that it lacks nothing of the reply. So the gate keeps such answers for a while and gives them again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from google.protobuf.message import DecodeError

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
PULL, BEAT = "/v1/fleet/pull-messages", "/v1/fleet/send-node-heartbeat"
ONCE = frozenset({PULL, "/v1/fleet/push-messages", "/v1/fleet/push-object"})  #: what Flower does once
KEPT, MAX_KEPT = 4, 2**20  #: answers to a site's pushes that are kept (it has two under way at most), and bytes of one


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


@dataclass
class Answers:
    """The last answers of one site to requests that Flower does once: for the same request again, since its answer may have been lost.

    Attributes:
        kept: by path and content; when, for how many seconds, and the answer as it was sent. Oldest first.
        turn: held while Flower does one of them, so that the same one does not overtake it.
    """

    kept: dict[bytes, tuple[float, float, list[Any]]] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def again(self, path: str, content: bytes) -> list[Any]:
        """The answer to the same request; nothing where it is a new one. All requests for a message are alike: it is the same one until the site asks
        for something of a message. A reply that it pushes meanwhile is to an earlier one."""
        if path not in ONCE | {BEAT}:
            self.kept = {k: a for k, a in self.kept.items() if k[:1] != b"<"}
        at, seconds, answer = self.kept.get(self._name(path, content), (0.0, 0.0, []))
        return answer if time.monotonic() - at < min(seconds, WINDOW_SECONDS) else []

    def keep(self, path: str, content: bytes, answer: list[Any]) -> None:
        """Keep an answer that says something: no message, or an object that was not stored, is said in no bytes."""
        body = b"".join(part.get("body", b"") for part in answer)
        if path in ONCE and 0 < len(body) <= MAX_KEPT:
            name = self._name(path, content)
            self.kept.pop(name, None)
            self.kept[name] = time.monotonic(), _seconds(path, body), answer
            alike = [k for k in self.kept if k[:1] == name[:1]]
            for oldest in alike[: -1 if path == PULL else -KEPT]:
                del self.kept[oldest]

    @staticmethod
    def _name(path: str, content: bytes) -> bytes:
        return (b"<" if path == PULL else b">") + hashlib.sha256(path.encode() + b" " + content).digest()


def gate(app: App, server: httpx.AsyncClient | None = None, knows: Callable[[bytes], bool] = lambda key: False) -> App:
    """The public side of the SuperLink's ``app``.

    Args:
        server: where enrolment is answered; without one it is forbidden too.
        knows: whether a key is a site's at this moment: a kept answer is given to no other. Flower itself judges all other requests.
    """
    once = Once()
    sites: dict[bytes, Answers] = {}  # keys with which Flower has done something

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
            await pass_on(scope, receive, send, key, signed)

    async def pass_on(scope: Any, receive: Any, send: Any, key: bytes, signed: bytes) -> None:
        """Ask Flower, unless it has done just that for this site. One that has gone away meanwhile does not stop Flower half-way."""
        path, site, status, content = scope["path"], sites.get(key) or Answers(), 500, b""
        answer, done = list[Any](), asyncio.Event()

        async def watched(message: Any) -> None:
            nonlocal status, site
            if message["type"] == "http.response.start":
                status = message["status"]
                if status < 400:
                    site = sites.setdefault(key, site)  # of two that came first at once
            if path in ONCE:
                answer.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                if status == 200 and path in ONCE:
                    site.keep(path, content, answer)
                done.set()
            await send(message)

        async def whole() -> Any:
            if unread:
                return {"type": "http.request", "body": unread.pop()}
            await done.wait()
            return {"type": "http.disconnect"}

        try:
            if (body := await _body(receive, MAX_FLEET_BODY)) is None:
                return
            content, unread = body, [body]
            async with site.turn if path in ONCE else nullcontext():
                kept = site.again(path, content) if _fresh(signed) else []
                known = await asyncio.to_thread(knows, key) if kept else False
                for part in kept if known else []:
                    await send(part)
                if not known:
                    await app(scope, whole, watched)
        finally:
            if status == 401 or key not in sites:
                once.forget(key, signed)

    async def enrolment(scope: Any, receive: Any, send: Any, server: httpx.AsyncClient) -> None:
        if (body := await _body(receive, MAX_BODY)) is None:
            return
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


def _fresh(signed: bytes) -> bool:
    """Whether Flower would take a request of this time."""
    try:
        age = (datetime.now(UTC) - datetime.fromisoformat(signed.decode())).total_seconds()
    except (ValueError, TypeError):
        return False
    return -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE


def _seconds(path: str, body: bytes) -> float:
    """How long an answer is of use: a message as long as Flower would hand it out."""
    if path == PULL:
        with suppress(DecodeError, IndexError):
            said = PullMessagesResponse.FromString(body).messages_list[0].metadata
            return float(said.created_at + said.ttl - time.time())
    return WINDOW_SECONDS


async def _body(receive: Any, most: int) -> bytes | None:
    """The content of a request, read no further once it is longer than so many bytes; None when its sender has gone."""
    parts, size, more = list[bytes](), 0, True
    while more and size <= most:
        part = await receive()
        if part["type"] == "http.disconnect":
            return None
        parts.append(part.get("body", b""))
        size, more = size + len(parts[-1]), bool(part.get("more_body"))
    return b"".join(parts)


async def _answer(send: Any, status: int, body: bytes, kind: str = "text/plain") -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
