"""The two messages of a run, whatever carries them: what the coordinator asks and what a site answers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
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

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything this request says, the same at both ends: a reply names the request it answers by it."""
        said = [self.run, self.study_digest, self.step, self.exchange, self.message, self.state.facts]
        plain = json.loads(json.dumps(said))  # as it arrives: keys are strings, tuples are lists
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
        for name, array in sorted(self.state.arrays.items()):
            digest.update(f"\n{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Reply:
    """A site's answer: cargo, or the code of its refusal (a key of :data:`medsynx.errors.CODES`) without any message.

    ``private`` is False when this site ran with noise off. ``message`` is the answer to an exchange of a secure sum that asks for no cargo.
    ``answers`` is the digest of the request: cargo of another step, run or state is never taken for this one's.
    """

    arrays: Arrays = field(default_factory=dict)
    refusal: str | None = None
    private: bool = True
    message: dict[str, Any] = field(default_factory=dict)
    answers: str = ""

    @property
    def said(self) -> bytes:
        """The message as its hash in the audit log takes it."""
        return json.dumps(self.message, sort_keys=True).encode()
