"""The console's line to the server: async REST calls, every failure as one exception with a sentence and a remedy."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ApiError(Exception):
    """What went wrong and what to try. ``code`` is the server's, or ``unreachable``."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        self.code, self.message, self.hint = code, message, hint
        super().__init__(f"{message} [{code}]" + (f"\n{hint}" if hint else ""))


class Api:
    """One server.

    Args:
        url: base URL.
        ca: PEM of a CA to trust beside none other; None for the system's.
        transport: stands in for the network in tests.
    """

    def __init__(self, url: str, ca: Path | None = None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(ca)) if ca else True
        self.url = url.rstrip("/")
        self.http = httpx.AsyncClient(base_url=self.url, verify=verify, timeout=30, transport=transport)
        self.role = ""

    async def _ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            response = await self.http.request(method, path, **content)
        except httpx.HTTPError as error:
            raise ApiError(
                "unreachable", f"{self.url} does not answer ({type(error).__name__})", "Is the server up?"
            ) from None
        if response.is_error:
            try:
                body = response.json()
            except ValueError:
                body = {}
            raise ApiError(
                body.get("code", str(response.status_code)),
                body.get("detail", "the server refused"),
                body.get("hint", ""),
            )
        return response

    async def sign_in(self, email: str, password: str) -> None:
        """Get an access token and use it from now on. A password never goes over plain http but to this machine."""
        address = httpx.URL(self.url)
        if address.scheme != "https" and address.host not in LOOPBACK:
            raise ApiError("request-invalid", f"{self.url} is not encrypted", "Use an https address.")
        answer = await self._ask("POST", "/auth/token", data={"username": email, "password": password})
        try:
            body = answer.json()
            token, self.role = str(body["access_token"]), str(body["role"])
        except (ValueError, KeyError, TypeError):
            raise ApiError("unreachable", f"{self.url} is no MedSynX server", "Check the address.") from None
        self.http.headers["Authorization"] = f"Bearer {token}"

    @property
    def coordinates(self) -> bool:
        """Whether this person may see runs and sites and release generators."""
        return self.role in ("coordinator", "admin")

    async def rows(self, what: str) -> list[dict[str, Any]]:
        """``sites``, ``runs`` or ``generators``; nothing of the first two for a researcher."""
        if what != "generators" and not self.coordinates:
            return []
        found: list[dict[str, Any]] = (await self._ask("GET", f"/{what}")).json()
        return found

    async def set_released(self, generator: str, released: bool) -> None:
        """Release or withhold."""
        await self._ask("POST", f"/generators/{generator}/{'release' if released else 'withhold'}")

    async def report(self, generator: str) -> str:
        """The HTML report."""
        return (await self._ask("GET", f"/generators/{generator}/report", params={"format": "html"})).text

    async def samples(self, generator: str, rows: int) -> bytes:
        """Synthetic rows as CSV."""
        return (
            await self._ask(
                "POST", f"/generators/{generator}/samples", json={"rows": rows, "seed": None, "format": "csv"}
            )
        ).content
