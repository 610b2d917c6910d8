"""The coordinator's line to the MedSynX server: run progress and finished bundles, under a service token."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any, NamedTuple

from medsynx.errors import MedsynxError

log = logging.getLogger("medsynx.coordinator")
UPLOAD_SECONDS = 300.0
SEND_SECONDS = 60.0  #: what the server has for an answer
PROGRESS_SECONDS = 5.0  #: and for one to a run's progress: the run stands still meanwhile


class Listed(NamedTuple):
    """A site that the server names: its latest node key (PEM), and whether it is enrolled (else it was revoked or has left)."""

    key: bytes
    enrolled: bool


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

    def listed(self) -> dict[str, Listed]:
        """Every site that ever enrolled, by name. Raises httpx's errors, and ValueError, KeyError or TypeError for an answer that is no such list."""
        sites: Any = self._send("GET", "/enrolment/sites")
        return {s["site"]: Listed(s["node_key"].encode(), s["status"] == "enrolled") for s in sites}

    def put_run(self, name: str, status: dict[str, Any]) -> None:
        """Tell how a run goes. A server that does not answer, or anything, must not stop a run: the trouble is logged."""
        import httpx

        if self.url:
            try:
                self._send("PUT", f"/runs/{name}", PROGRESS_SECONDS, json=status)
            except (httpx.HTTPError, OSError, ValueError) as error:  # also: its CA file is gone; it answers no JSON
                log.warning("run %s: the server did not take its progress (%s)", name, type(error).__name__)

    def upload(self, bundle: Path) -> str | None:
        """Register a bundle; returns its generator id, or None without a server. Sent again, a bundle is the same generator.

        A server that is away, or answers what a generator is not (a proxy's page), is waited for: the budget is spent by now.

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
                status = error.response.status_code
                if status < 500 and status != 429:
                    raise _kept(f"the server refused the bundle ({status})") from None
                why = f"answered {status}"
            except httpx.HTTPError as error:
                why = type(error).__name__
            except (ValueError, KeyError, TypeError):
                why = "its answer names no generator; is a proxy in between?"
            if time.monotonic() > until:
                raise _kept(f"the server did not take the bundle ({why})")
            time.sleep(2)
        return None


def _kept(what: str) -> MedsynxError:
    return MedsynxError(
        "federation-unreachable", f"{what}; it is kept: `medsynx coordinator deliver RUN` sends it again"
    )
