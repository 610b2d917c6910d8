"""What every synthetic image says of itself: that no patient is behind it, which generator made it, and what was proved of that one's privacy."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4, uuid5

from medsynx import __version__
from medsynx.bundle import Bundle
from medsynx.errors import MedsynxError

MARK = "SYNTHETIC - NOT FROM A PATIENT - NOT FOR DIAGNOSIS"
NAMESPACE = UUID("6f5ab1f3-1f0c-4f0e-9a53-0d4b7c1e8a26")  #: of the draws' UUIDs; drawn once for MedSynX


@dataclass(frozen=True)
class Provenance:
    """Where the images of one draw come from.

    Attributes:
        body: the same as JSON: ids, digests, both epsilons.
        privacy: the privacy statement as a sentence; epsilons are rounded up.
        root: UUID of the draw, that all others are derived from.
    """

    body: dict[str, Any]
    privacy: str
    root: UUID

    @classmethod
    def of(cls, bundle: Bundle, images: int, seed: int | None, classes: tuple[str, ...] = ()) -> Provenance:
        """Of ``images`` images drawn with ``seed``, of ``classes`` alone or, without any, of all. With a seed the root follows from
        bundle, number, seed and classes, as the pixels do; else it is fresh.

        Raises:
            MedsynxError: ``bundle-unreadable`` when the privacy statement is incomplete or claims privacy without an epsilon.
        """
        study = bundle.study
        drawn = f"{bundle.digest}/{images}/{seed}" + (f"/{json.dumps(classes)}" if classes else "")
        root = uuid4() if seed is None else uuid5(NAMESPACE, drawn)
        guarantee, sentence = _privacy(bundle)
        body = {
            "synthetic": True,
            "mark": MARK,
            "software": f"MedSynX {__version__}",
            "generator_id": bundle.digest[:32],
            "bundle_digest": bundle.digest,
            "signer": bundle.signer,
            "study": study.name,
            "study_digest": study.digest,
            "family": study.family.name,
            "privacy": {**guarantee, "statement": sentence},
            "draw": {"uuid": str(root), "images": images, "seed": seed}
            | ({"classes": list(classes)} if classes else {}),
        }
        return cls(body, sentence, root)

    @property
    def text(self) -> str:
        """Everything in one paragraph of less than 600 characters (ASCII)."""
        b = self.body
        return (
            f"{MARK}. Made by the generative model {b['generator_id']} ({b['family']}) of the study {b['study']}. "
            f"Study digest {b['study_digest']}. Privacy: {self.privacy}."
        )

    def json(self, **more: object) -> bytes:
        """:attr:`body` with what one file adds, as UTF-8 JSON."""
        return json.dumps({**self.body, **more}, indent=1, ensure_ascii=False).encode()

    def uid(self, what: str) -> str:
        """A DICOM UID of this draw: ``2.25.`` and a UUID as a number (PS3.5, B.2)."""
        return f"2.25.{uuid5(self.root, what).int}"


def _privacy(bundle: Bundle) -> tuple[dict[str, Any], str]:
    statement = bundle.json("privacy.json")
    try:
        by = {g["adversary"]: g for g in statement["guarantees"]}
        researcher, coordinator = by["researcher"], by["coordinator"]
        epsilons = [researcher["epsilon"], coordinator["epsilon"]]
        if bundle.private and not all(math.isfinite(e) for e in epsilons):
            raise ValueError("no epsilon")
        shared = {k: researcher[k] for k in ("delta", "unit", "neighbours")}
        trust = statement["trust"]
    except (KeyError, TypeError, ValueError):
        raise MedsynxError("bundle-unreadable", "the bundle's privacy statement is incomplete") from None
    if not bundle.private:
        return {"private": False, "epsilon_researcher": None, "epsilon_coordinator": None}, "NONE - noise was off"
    up = [f"{math.ceil(e * 1000) / 1000:g}" for e in epsilons]
    sentence = (
        f"epsilon {up[0]} against researchers, epsilon {up[1]} against the coordinator, delta {shared['delta']:g}, "
        f"per {shared['unit']} ({shared['neighbours']})"
    )
    found = {"private": True, "epsilon_researcher": epsilons[0], "epsilon_coordinator": epsilons[1], **shared}
    return {**found, "trust": trust}, sentence
