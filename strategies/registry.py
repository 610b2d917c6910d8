"""The coordinator's line to the MedSynX server: run progress and finished bundles, under a service token."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from medsynx.errors import MedsynxError

log = logging.getLogger("medsynx.coordinator")
UPLOAD_SECONDS = 300.0
SEND_SECONDS, PROGRESS_SECONDS = (
    60.0,
    5.0,
)  #: what the server has for an answer; a run stands still while it tells its progress


class Registry:
    """Talks to the server's REST API; does nothing when no server is configured.

    Args:
        url: base URL, or None.
        token: service token.
        ca: PEM file of the server's CA, or None for the system's.
    """

    def __init__(self, url: str | None = None, token: str = "", ca: str | None = None) -> None:
        self.url, self.token, self.ca = url, token, ca

    @classmethod
    def configured(cls, file: Path) -> Registry:
        """From ``registry.json`` with keys ``url``, ``token`` and ``ca``; without the file, nothing is sent."""
        return cls(**json.loads(file.read_text("utf-8"))) if file.exists() else cls()

    def _send(self, method: str, path: str, seconds: float = SEND_SECONDS, **content: Any) -> dict[str, Any]:
        import httpx

        headers = {"Authorization": f"Bearer {self.token}"}
        with httpx.Client(base_url=self.url or "", headers=headers, verify=self.ca or True, timeout=seconds) as client:
            response = client.request(method, path, **content)
        response.raise_for_status()
        body: dict[str, Any] = response.json()
        return body

    def enrolled(self) -> dict[str, bytes]:
        """Site -> node key (PEM) of every enrolled site. Raises httpx's errors when there is no server or it does not answer."""
        sites: Any = self._send("GET", "/enrolment/sites")
        return {s["site"]: s["node_key"].encode() for s in sites if s["status"] == "enrolled"}

    def put_run(self, name: str, status: dict[str, Any]) -> None:
        """Tell how a run goes. A server that does not answer, or anything, must not stop a run: the trouble is logged."""
        import httpx

        if self.url:
            try:
                self._send("PUT", f"/runs/{name}", PROGRESS_SECONDS, json=status)
            except (httpx.HTTPError, OSError, ValueError) as error:  # also: its CA file is gone; it answers no JSON
                log.warning("run %s: the server did not take its progress (%s)", name, type(error).__name__)

    def upload(self, bundle: Path) -> str | None:
        """Register a bundle; returns its generator id, or None without a server. One that is away is waited for: the budget is spent by now.

        Raises:
            MedsynxError: ``federation-unreachable`` when the bundle is refused, or not taken within :data:`UPLOAD_SECONDS`.
        """
        import httpx

        until = time.monotonic() + UPLOAD_SECONDS
        while self.url:
            try:
                with bundle.open("rb") as content:
                    files = {"bundle": (bundle.name, content, "application/zip")}
                    return str(self._send("POST", "/generators", files=files)["id"])
            except httpx.HTTPStatusError as error:
                raise MedsynxError(
                    "federation-unreachable", f"the server refused the bundle ({error.response.status_code})"
                ) from None
            except httpx.HTTPError as error:
                if time.monotonic() > until:
                    why = type(error).__name__
                    raise MedsynxError(
                        "federation-unreachable", f"the server did not take the bundle ({why})"
                    ) from None
                time.sleep(2)
        return None
