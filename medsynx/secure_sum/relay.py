"""The coordinator's part in one secure sum: it carries messages from site to site and takes the masks off the total.

It is not trusted with anything: what it could gain by deviating, the sites refuse (:mod:`medsynx.secure_sum.site`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from medsynx.errors import MedsynxError
from medsynx.secure_sum import masks
from medsynx.secure_sum.graph import Graph, majority
from medsynx.secure_sum.ring import Residues, Ring
from medsynx.secure_sum.shamir import SHARE_BYTES, combine
from medsynx.secure_sum.site import commitment, pair_seed, points
from medsynx.secure_sum.terms import Message, graph, raw, survivors_needed, text, transcript


class TooFew(Exception):
    """Fewer sites are left than the sum needs."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"{needed} sites are needed")
        self.needed = needed


class Relay:
    """One secure sum at the coordinator.

    Each method takes the usable answers of one exchange by site and returns what to tell each site next. Sites whose answer was malformed or
    disagreed are noted in ``faulty`` with a code and are out.

    Args:
        quorum: as in the sites' terms.
        colluding: as in the sites' terms.
        ring: of the vectors.
    """

    def __init__(self, quorum: int, colluding: int, ring: Ring) -> None:
        self.quorum, self.colluding, self.ring = quorum, colluding, ring
        self.faulty: dict[str, str] = {}
        self.adverts: dict[str, Message] = {}
        self.commitments: dict[str, bytes] = {}
        self.survivors: list[str] = []
        self._boxes: dict[str, dict[str, str]] = {}
        self._tag, self._salt, self._graph = "", b"", Graph((), 0, 0)

    def advertised(self, answers: Mapping[str, Message]) -> dict[str, Message]:
        """Adverts in; everybody's adverts out. Sites with other terms than most (another roster, say) are out."""
        tags = Counter(str(a.get("tag")) for a in answers.values())
        if tags:
            self._tag = tags.most_common(1)[0][0]
        for site, answer in answers.items():
            if str(answer.get("tag")) != self._tag:
                self.faulty[site] = "roster-mismatch"
                continue
            try:
                keys = {k: text(raw(answer[k], 32)) for k in ("mask_key", "box_key")}
                self.adverts[site] = {**keys, "signature": text(raw(answer["signature"], 64))}
            except (ValueError, KeyError):
                self.faulty[site] = "reply-invalid"
        self._enough(self.adverts)
        self._salt = transcript(self._tag, self.adverts)
        self._graph = graph(self.adverts, self._salt, self.quorum, self.colluding)
        return {site: {"adverts": self.adverts} for site in self.adverts}

    def shared(self, answers: Mapping[str, Message]) -> dict[str, Message]:
        """Boxes in; to each site the boxes addressed to it out."""
        for site, answer in answers.items():
            try:
                boxes = {str(s): text(raw(box)) for s, box in answer["boxes"].items()}
                self.commitments[site] = raw(answer["commitment"], 32)
            except (ValueError, KeyError, AttributeError):
                boxes = {}
            if set(boxes) == self._graph.neighbours(site):
                self._boxes[site] = boxes
            else:
                self.faulty[site] = "reply-invalid"
        present = sorted(self._boxes)
        self._enough(present)
        return {
            site: {
                "present": present,
                "boxes": {s: self._boxes[s][site] for s in self._graph.neighbours(site) & set(present)},
            }
            for site in present
        }

    def masked(self, answers: Mapping[str, Message]) -> dict[str, Message]:
        """What came with the masked vectors in; the survivors out, and to each site what its neighbours among them signed."""
        signatures = {}
        for site in answers.keys() & self._boxes.keys():
            try:
                signatures[site] = text(raw(answers[site]["signature"], 64))
            except (ValueError, KeyError):
                self.faulty[site] = "reply-invalid"
        self.survivors = sorted(signatures)
        self._enough(self.survivors)
        near = {site: self._graph.neighbours(site) & signatures.keys() for site in self.survivors}
        return {
            site: {"survivors": self.survivors, "signatures": {s: signatures[s] for s in sorted(near[site])}}
            for site in self.survivors
        }

    def confirmed(self, answers: Mapping[str, Message]) -> dict[str, Message]:
        """Signatures in; all of them out. A survivor that did not sign is still in the total."""
        signatures = {site: a["signature"] for site, a in answers.items() if isinstance(a.get("signature"), str)}
        needed = majority(len(self.adverts), self.colluding)
        if len(signatures) < needed:
            raise TooFew(needed)
        return {site: {"signatures": signatures} for site in signatures}

    def total(self, masked: Residues, answers: Mapping[str, Message]) -> Residues:
        """The total of the survivors' vectors.

        Args:
            masked: sum of their masked vectors; changed in place.
            answers: shares, by the site that revealed them.

        Raises:
            TooFew: not enough shares of somebody's secret.
            MedsynxError: ``reply-invalid`` when shares give another secret than was committed to.
        """
        shares = self._revealed(answers)
        for site in self.survivors:
            seed = self._secret(shares["seeds"].get(site, {}))
            if commitment(seed) != self.commitments[site]:
                raise MedsynxError("reply-invalid", f"some site gave a wrong share of {site}'s mask")
            masks.mask(masked, seed, add=False)
        for gone in sorted(set(self._boxes) - set(self.survivors)):
            near = self._graph.neighbours(gone) & set(self.survivors)
            if not near:
                continue  # it shared masks with nobody who is left
            key = self._secret(shares["keys"].get(gone, {}))
            if text(masks.public_key(key)) != self.adverts[gone]["mask_key"]:
                raise MedsynxError("reply-invalid", f"some site gave a wrong share of {gone}'s key")
            private = masks.load(key)
            for site in near:
                seed = pair_seed(private, self.adverts[site]["mask_key"], self._salt, site, gone)
                masks.mask(masked, seed, add=site > gone)
        return self.ring.add([masked])

    def _revealed(self, answers: Mapping[str, Message]) -> dict[str, dict[str, dict[int, bytes]]]:
        """Kind -> whose secret -> point -> share; malformed ones are left out."""
        names = points(self.adverts)
        out: dict[str, dict[str, dict[int, bytes]]] = {"seeds": {}, "keys": {}}
        for site, answer in answers.items():
            for kind, by_owner in out.items():
                try:
                    for owner, share in answer[kind].items():
                        by_owner.setdefault(str(owner), {})[names[site]] = raw(share, SHARE_BYTES)
                except (ValueError, KeyError, AttributeError):
                    self.faulty[site] = "reply-invalid"
        return out

    def _secret(self, shares: Mapping[int, bytes]) -> bytes:
        try:
            return combine(shares, self._graph.threshold)
        except ValueError:
            raise TooFew(self._graph.threshold) from None

    def _enough(self, sites: Collection[str]) -> None:
        needed = survivors_needed(max(len(self.adverts), 1), self.quorum, self.colluding)
        if len(sites) < needed:
            raise TooFew(needed)
