"""What every site knows before it speaks, from its own files: the step, the roster of identity keys, the quorum and how many may collude.

The coordinator sends none of it, so it can change none of it: thresholds are computed here, by each site for itself, and a step's tag names them all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from medsynx.errors import MedsynxError
from medsynx.secure_sum.graph import Graph, majority
from medsynx.secure_sum.masks import DOMAIN

LEAST_SURVIVORS = 3  #: of two, each would learn the other's vector from the total
EXCHANGES = ("advert", "share", "mask", "confirm", "unmask")  #: in this order, once each
Message = dict[str, Any]  #: JSON-able; bytes as base64 text


@dataclass(frozen=True)
class Terms:
    """The terms of one secure sum.

    Attributes:
        study: digest of the approved study.
        run: the run's name.
        step: the step's name.
        roster: site -> Ed25519 public key, 32 bytes; nobody else takes part.
        quorum: least sites in a total.
        colluding: sites that may conspire with the coordinator (the study's ``tolerated_dropouts``).
    """

    study: str
    run: str
    step: str
    roster: Mapping[str, bytes]
    quorum: int
    colluding: int

    @cached_property
    def tag(self) -> str:
        """SHA-256 (hex) of all terms. A site masks once a tag."""
        terms = [self.study, self.run, self.step, roster_digest(self.roster), self.quorum, self.colluding]
        return digest("tag", terms).hex()


def roster_digest(roster: Mapping[str, bytes]) -> str:
    """SHA-256 (hex) of a roster, as approvals record it."""
    return digest("roster", {site: text(key) for site, key in roster.items()}).hex()


def survivors_needed(participants: int, quorum: int, colluding: int) -> int:
    """Least sites in an unmasked total: the quorum, and enough that no two totals can be agreed on."""
    return max(quorum, majority(participants, colluding), LEAST_SURVIVORS)


def transcript(tag: str, adverts: Mapping[str, Message]) -> bytes:
    """SHA-256 of the tag and everybody's public keys: salt of all keys, so sites shown different adverts share nothing."""
    return digest("transcript", [tag, {s: [a["mask_key"], a["box_key"]] for s, a in adverts.items()}])


def graph(names: Mapping[str, Any], salt: bytes, quorum: int, colluding: int) -> Graph:
    """The mask graph of the participants."""
    dropouts = len(names) - survivors_needed(len(names), quorum, colluding)
    return Graph.of(sorted(names), salt, colluding, dropouts)


def advert_statement(tag: str, site: str, advert: Message) -> bytes:
    """What a site signs of its advert."""
    return DOMAIN + b"advert" + digest("advert", [tag, site, advert["mask_key"], advert["box_key"]])


def present_statement(salt: bytes, present: list[str]) -> bytes:
    """What a site signs of the sites it was told to share masks with."""
    return DOMAIN + b"present" + digest("present", [text(salt), present])


def survivors_statement(salt: bytes, survivors: list[str]) -> bytes:
    """What a site signs of the survivors it was told."""
    return DOMAIN + b"survivors" + digest("survivors", [text(salt), survivors])


def digest(purpose: str, value: Any) -> bytes:
    """SHA-256 of canonical JSON, separated by purpose."""
    body = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(DOMAIN + purpose.encode() + b"\0" + body.encode()).digest()


def text(raw: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(raw).decode()


def raw(value: Any, size: int | None = None) -> bytes:
    """Inverse of :func:`text`. Raises ValueError for anything else, a second spelling of the same bytes among it, or for another size."""
    if not isinstance(value, str):
        raise ValueError("not base64 text")
    out = base64.b64decode(value, validate=True)
    if text(out) != value:
        raise ValueError("not base64 as it is written here")
    if size is not None and len(out) != size:
        raise ValueError(f"not {size} bytes")
    return out


def refused(why: str) -> MedsynxError:
    """A message of the protocol that a site does not answer."""
    return MedsynxError("secure-sum-refused", why)
