"""What every Flower process of ours is started with."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from medsynx.logs import VARIABLE

SITE = "MEDSYNX_SITE"  #: environment variable with the site's folder, for its executor
CONTACT = "contact"  #: in a SuperNode's home: a file whose time is that of the coordinator's last answer
NOT_TAKEN = "signed requests are not taken"  #: what a SuperNode logs before it ends for that
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_LOG_LEVEL": "INFO"}


def flower_env(home: Path, **more: str) -> dict[str, str]:
    """Environment of a Flower process with ``home`` as FLWR_HOME. Its tools start each other by name, so this environment's scripts come first."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = f"{script('')}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    told = {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}
    return {**QUIET, **told, **straight(), "FLWR_HOME": str(home), "PATH": path, **more}


def straight() -> dict[str, str]:
    """Variables by which requests to 127.0.0.1 take no proxy of the environment: what Flower's processes tell each other there stays there."""
    kept = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    without = kept if kept.strip() == "*" else ",".join(filter(None, (kept, "127.0.0.1")))
    return {"NO_PROXY": without, "no_proxy": without}


def script(name: str) -> str:
    """Path of a console script of this environment."""
    return os.path.join(sysconfig.get_path("scripts"), name)
