"""The two messages of a run, whatever carries them: what the coordinator asks and what a site answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medsynx.generators.base import Arrays, State


@dataclass(frozen=True)
class Request:
    """One step asked of one site. It names the study by digest only: the site reads the manifest it approved, never one that arrives.

    ``exchange`` and ``message`` belong to the secure sum's protocol (:mod:`medsynx.secure_sum.site`): which of its exchanges this is (empty outside
    of it), and what the coordinator relays from the other sites.
    """

    run: str
    study_digest: str
    step: str
    state: State
    exchange: str = ""
    message: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """A site's answer: cargo, or the code of its refusal (a key of :data:`medsynx.errors.CODES`) without any message.

    ``private`` is False when this site ran with noise off. ``message`` is the answer to an exchange of a secure sum that asks for no cargo.
    """

    arrays: Arrays = field(default_factory=dict)
    refusal: str | None = None
    private: bool = True
    message: dict[str, Any] = field(default_factory=dict)
