"""The coordinator's Flower ServerApp: one run of one study. Everything it needs lies in the coordinator's folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from medsynx import logs
from strategies.coordinator import CoordinatorFolder, conduct
from strategies.flower import FlowerFederation
from strategies.lock import alone

COORDINATOR = "MEDSYNX_COORDINATOR"  #: environment variable with the coordinator's folder
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conduct the run named in the run config; raises when it fails, so that Flower's state says so too."""
    logs.start(sys.stdout)
    folder = Path(os.environ[COORDINATOR])
    file = (
        folder / "roster.json"
    )  # there is none before the first hospital has joined: the run then ends for want of a quorum
    roster = {site: int(node) for site, node in json.loads(file.read_text("utf-8") if file.exists() else "{}").items()}
    config = dict(context.run_config)
    with alone(CoordinatorFolder(folder).run(str(config["run"])), context.run_id):
        conduct(FlowerFederation(grid, roster), folder, config)
