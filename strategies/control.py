"""The one place that speaks to the SuperLink's Control API, over the private loopback address.

flwr internals used here are pinned by ``flwr==1.41.*`` and a contract test.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from medsynx.flower_records import app_folder


class Control:
    """Registers nodes, starts and stops runs.

    Args:
        address: ``host:port`` of the SuperLink's private listener.
        ca: PEM of the CA that signed its certificate.
    """

    def __init__(self, address: str, ca: Path) -> None:
        self.client: Any = ControlHttpClient.from_server_address(
            server_address=address,
            insecure=False,
            root_certificates=ca.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="medsynx-coordinator")],
        )
        self.client._client._mounts.clear()  # a proxy of the environment leads away from this machine

    def register(self, name: str, public_key: bytes) -> int:
        """Admit a site's node by its public key (OpenSSH or PEM bytes as flwr reads them); returns the node id."""
        return int(self.client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)

    def unregister(self, node: int) -> None:
        """Shut a node out; its key is not taken again."""
        self.client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def nodes(self) -> dict[int, bytes]:
        """Node id -> public key of every admitted node."""
        nodes = self.client.ListNodes(ListNodesRequest()).nodes_info
        return {n.node_id: n.public_key for n in nodes if n.status != "unregistered"}

    def online(self) -> set[int]:
        """Node ids that count as online."""
        return {n.node_id for n in self.client.ListNodes(ListNodesRequest()).nodes_info if n.status == "online"}

    def start(self, study_digest: str, run: str, app: Path | None = None) -> int:
        """Start a run of the stub app (``app`` stands in for it in tests only); returns Flower's run id."""
        content = build_fab_from_disk(app or app_folder())
        fab = fab_to_proto(Fab(hashlib.sha256(content).hexdigest(), content, {}))
        config = user_config_to_proto({"study-digest": study_digest, "run": run})
        return int(self.client.StartRun(StartRunRequest(fab=fab, override_config=config)).run_id)

    def status(self, run_id: int) -> tuple[str, str]:
        """Flower's own state of a run and its sub-state, for example ``("finished", "failed")``."""
        found = self.client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return str(found.status), str(found.sub_status)

    def stop(self, run_id: int) -> bool:
        """Stop a run."""
        return bool(self.client.StopRun(StopRunRequest(run_id=run_id)).success)
