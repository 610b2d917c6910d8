"""The few REST calls the demo makes in people's names."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from medsynx.errors import MedsynxError


class Client:
    """A signed-in person.

    Args:
        url: the server's base URL.
        ca: PEM of the CA to trust.
    """

    def __init__(self, url: str, ca: Path) -> None:
        import ssl

        import httpx

        self.http = httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=str(ca)), timeout=120)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def _ask(self, method: str, path: str, **content: Any) -> Any:
        response = self.http.request(method, path, **content)
        if response.is_error:
            problem = response.json() if "json" in response.headers.get("content-type", "") else {}
            raise MedsynxError(
                problem.get("code", "federation-unreachable"),
                problem.get("detail", f"the server answered {response.status_code}"),
            )
        return response

    def sign_in(self, email: str, password: str) -> None:
        """Get a token and use it from now on."""
        token = self._ask("POST", "/auth/token", data={"username": email, "password": password}).json()
        self.http.headers["Authorization"] = f"Bearer {token['access_token']}"

    def release(self, generator: str) -> None:
        """Release a generator."""
        self._ask("POST", f"/generators/{generator}/release")

    def samples(self, generator: str, rows: int, target: Path, form: str) -> None:
        """Stream synthetic rows or images into a file of one of the server's formats."""
        with self.http.stream(
            "POST", f"/generators/{generator}/samples", json={"rows": rows, "seed": None, "format": form}
        ) as response:
            response.raise_for_status()
            with target.open("wb") as out:
                for chunk in response.iter_bytes():
                    out.write(chunk)

    def report(self, generator: str, target: Path) -> None:
        """Save the HTML report."""
        target.write_text(self._ask("GET", f"/generators/{generator}/report", params={"format": "html"}).text, "utf-8")
