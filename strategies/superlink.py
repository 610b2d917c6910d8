"""The SuperLink behind its gate: the full API on loopback, and a second TLS listener that serves hospitals the fleet endpoints only.

Flower's open Control and Runtime APIs have no authentication: whoever reaches them can start runs and take tasks. So nothing but ``/v1/fleet/*`` and
``/health`` ever listens on a public address.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import flwr.superlink.main as superlink_main
import uvicorn
from flwr.superlink.cli.flower_superlink import flower_superlink

GATE_HOST, GATE_PORT, GATE_CERT, GATE_KEY = (
    "MEDSYNX_GATE_HOST",
    "MEDSYNX_GATE_PORT",
    "MEDSYNX_GATE_CERT",
    "MEDSYNX_GATE_KEY",
)
ALLOWED_PREFIX, ALLOWED_PATHS = "/v1/fleet/", frozenset({"/health"})
App = Callable[[Any, Any, Any], Awaitable[None]]


def fleet_only(app: App) -> App:
    """Pass fleet and health requests, answer 403 to everything else."""

    async def gate(scope: Any, receive: Any, send: Any) -> None:
        path = str(scope.get("path", ""))
        plain = ".." not in path and "//" not in path
        if scope["type"] == "http" and plain and (path.startswith(ALLOWED_PREFIX) or path in ALLOWED_PATHS):
            await app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"forbidden"})

    return gate


def main() -> None:
    """``python -m strategies.superlink`` takes flower-superlink's arguments; the gate's come from the environment."""
    create_app = superlink_main.create_app

    def create_gated(*args: Any, **kwargs: Any) -> Any:
        app = create_app(*args, **kwargs)
        config = uvicorn.Config(
            fleet_only(app),
            host=os.environ[GATE_HOST],
            port=int(os.environ[GATE_PORT]),
            lifespan="off",
            log_level="warning",
            ssl_certfile=os.environ[GATE_CERT],
            ssl_keyfile=os.environ[GATE_KEY],
        )
        threading.Thread(target=uvicorn.Server(config).run, daemon=True, name="fleet-gate").start()
        return app

    superlink_main.create_app = create_gated
    flower_superlink()


if __name__ == "__main__":
    main()
