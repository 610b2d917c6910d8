"""The coordinator's Flower ServerApp: one run of one study. Everything it needs lies in the coordinator's folder."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from medsynx import logs
from strategies.coordinator import CoordinatorFolder, conduct
from strategies.flower import FlowerFederation
from strategies.lock import alone
from strategies.members import read_roster

COORDINATOR = "MEDSYNX_COORDINATOR"  #: environment variable with the coordinator's folder
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conduct the run named in the run config; raises when it fails, so that Flower's state says so too."""
    logs.start(sys.stdout)
    folder = Path(os.environ[COORDINATOR])
    config = dict(context.run_config)
    with alone(CoordinatorFolder(folder).run(str(config["run"])), context.run_id):
        conduct(FlowerFederation(grid, partial(read_roster, folder)), folder, config)
