"""No request's body is larger than its route can use: refused before it is read, or as soon as it is when its length was not told."""

from __future__ import annotations

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medsynx.bundle import MAX_TOTAL

MAX_BODY = 4 * 2**20  #: bytes; a run tells of 10,000 sites at most
MAX_UPLOAD = MAX_TOTAL + 2**20  #: bytes of a bundle and the form around it


class Bounded:
    """ASGI middleware that ends a request with 413 when its body is too large."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on; count what is read of the body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = MAX_UPLOAD if scope["path"] == "/generators" else MAX_BODY
        told, read = int(Headers(scope=scope).get("content-length", "0")), 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive() if told <= most else {}
            read += len(message.get("body", b""))
            if max(told, read) > most:
                raise HTTPException(413, f"a request of more than {most:,} bytes")
            return message

        await self.app(scope, bounded, send)
