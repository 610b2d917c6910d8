"""Which hospitals are online, as the coordinator's service saw it last: ``presence.json`` of its folder, for whoever asks.

Flower's heartbeats decide: a hospital that fell silent counts as online for up to a minute.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx

from medsynx import files
from strategies.control import Control
from strategies.members import read_roster

EVERY_SECONDS = 2.0


class Presence:
    """Keeps the file of one coordinator's folder."""

    def __init__(self, folder: Path, control: Control) -> None:
        self.folder, self.control = folder, control
        self._noted = -EVERY_SECONDS

    def tend(self) -> None:
        """To be called now and then. While the SuperLink is away nobody is online; a full disk is waited for."""
        if time.monotonic() - self._noted < EVERY_SECONDS:
            return
        self._noted = time.monotonic()
        try:
            roster = read_roster(self.folder)
            try:
                online = self.control.online() if roster else set()
            except httpx.HTTPError:
                online = set()
            there = {site: node in online for site, node in roster.items()}
            if there != read_presence(self.folder):
                files.write(self.folder / "presence.json", json.dumps(there))
        except (OSError, ValueError):
            (self.folder / "presence.json").unlink(missing_ok=True)


def read_presence(folder: Path) -> dict[str, bool]:
    """Hospital -> whether it is online; empty before the service has looked."""
    file = folder / "presence.json"
    return dict(json.loads(file.read_text("utf-8"))) if file.exists() else {}
