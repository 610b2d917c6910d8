"""The SuperLink behind its gate: the full API on loopback, and a second TLS listener with what :mod:`strategies.gate` lets through.

Flower's open Control and Runtime APIs have no authentication: whoever reaches them can start runs and take tasks. So nothing but the gate ever
listens on a public address.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import flwr.superlink.main as superlink_main
import httpx
import uvicorn
from flwr.superlink.cli.flower_superlink import flower_superlink

from strategies.gate import gate

GATE_HOST, GATE_PORT, GATE_CERT, GATE_KEY = (
    "MEDSYNX_GATE_HOST",
    "MEDSYNX_GATE_PORT",
    "MEDSYNX_GATE_CERT",
    "MEDSYNX_GATE_KEY",
)
#: base URL of the REST server that answers enrolment, and its CA when that is not one of the system's; both optional
GATE_SERVER, GATE_SERVER_CA = "MEDSYNX_GATE_SERVER", "MEDSYNX_GATE_SERVER_CA"


def listen(config: uvicorn.Config) -> None:
    """Serve the gate. A SuperLink without one (its port is taken, say) ends, so that its supervisor starts it again or says why not."""
    try:
        uvicorn.Server(config).run()
    finally:
        os._exit(1)


def main() -> None:
    """``python -m strategies.superlink`` takes flower-superlink's arguments; the gate's come from the environment."""
    create_app = superlink_main.create_app
    url, ca = os.environ.get(GATE_SERVER), os.environ.get(GATE_SERVER_CA)
    server = httpx.AsyncClient(base_url=url, verify=ca or True, timeout=20, trust_env=False) if url else None

    def create_gated(*args: Any, **kwargs: Any) -> Any:
        app = create_app(*args, **kwargs)

        def knows(key: bytes) -> bool:
            return app.state.linkstate_factory.state().get_node_id_by_public_key(key) is not None

        config = uvicorn.Config(
            gate(app, server, knows),
            host=os.environ[GATE_HOST],
            port=int(os.environ[GATE_PORT]),
            lifespan="off",
            log_level="warning",
            ssl_certfile=os.environ[GATE_CERT],
            ssl_keyfile=os.environ[GATE_KEY],
        )
        threading.Thread(target=listen, args=(config,), daemon=True, name="fleet-gate").start()
        return app

    superlink_main.create_app = create_gated
    flower_superlink()


if __name__ == "__main__":
    main()
