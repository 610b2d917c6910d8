"""What a run needs to go on after the coordinator stopped: written after each exchange, whole or not at all. Public totals only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsynx import npz
from medsynx.generators.base import Arrays, State

STATE, OTHER = "state/", "other/"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stood.

    Attributes:
        state: of the phase under way.
        facts: the run's own JSON-able progress, the study's digest and run's name among it.
        arrays: the run's own arrays.
    """

    state: State
    facts: dict[str, Any]
    arrays: Arrays


def save(file: Path, checkpoint: Checkpoint) -> None:
    """Replace the file by this checkpoint; it is on the disk when this returns."""
    named = {STATE + n: a for n, a in checkpoint.state.arrays.items()} | {
        OTHER + n: a for n, a in checkpoint.arrays.items()
    }
    npz.write(file, {"state": checkpoint.state.facts, "run": checkpoint.facts}, named)


def load(file: Path, digest: str, run: str) -> Checkpoint | None:
    """The checkpoint of this run of this study, or None when there is none or it is spoilt."""
    held = npz.read(file)
    if held is None:
        return None
    facts, arrays = held
    if (facts["run"]["study"], facts["run"]["name"]) != (digest, run):
        return None
    state = {n.removeprefix(STATE): a for n, a in arrays.items() if n.startswith(STATE)}
    other = {n.removeprefix(OTHER): a for n, a in arrays.items() if n.startswith(OTHER)}
    return Checkpoint(State(state, facts["state"]), facts["run"], other)


def exchanges(file: Path) -> int:
    """How many exchanges a checkpoint has behind it; 0 when there is none or it is spoilt."""
    held = npz.read(file)
    return len(held[0]["run"]["rounds"]) if held else 0
