"""A site's part in one secure sum: five answers in a fixed order, and everything it refuses.

========== ==================================== ===================================================================
exchange   the site is told                     the site answers
========== ==================================== ===================================================================
advert     nothing                              two fresh public keys, signed with its identity key
share      everybody's adverts                  for each neighbour a box only that one can open: shares of its two secrets
mask       who shared, and the boxes for it     its vector plus one mask of its own and one for each neighbour, and its signature under who shared
confirm    who survived, and the neighbours'    its signature under exactly these survivors, once
           signatures under who shared
unmask     the survivors' signatures            one share a neighbour: of a survivor's own mask, of another's mask key
========== ==================================== ===================================================================
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from medsynx.secure_sum import masks
from medsynx.secure_sum.graph import Graph, majority
from medsynx.secure_sum.ring import Residues
from medsynx.secure_sum.shamir import SHARE_BYTES, split
from medsynx.secure_sum.terms import (
    Message,
    Terms,
    advert_statement,
    graph,
    present_statement,
    raw,
    refused,
    survivors_needed,
    survivors_statement,
    text,
    transcript,
)

Sign = Callable[[bytes], bytes]  #: Ed25519 with the site's identity key


@dataclass(frozen=True)
class Mask:
    """The masks of one vector; lives in memory only and is used once. ``message`` goes with the vector."""

    own: bytes
    pairs: dict[bytes, bool]
    message: Message

    def __call__(self, vector: Residues) -> Residues:
        """A masked copy of a uint64 vector, modulo 2^64 (hence modulo every smaller power of two)."""
        out = vector.copy()
        masks.mask(out, self.own)
        for seed, add in self.pairs.items():
            masks.mask(out, seed, add=add)
        return out


class Session:
    """The state machine of one site in one secure sum.

    Args:
        terms: from the site's own files.
        me: this site's name in the roster.
        state: as the last call left it; empty at first. JSON-able, holds secrets, and MUST be on disk before an answer leaves.

    Every method raises ``secure-sum-refused`` for a message out of order or against the rules, and then leaves the state as it was.
    """

    def __init__(self, terms: Terms, me: str, state: dict[str, Any]) -> None:
        self.terms, self.me, self.state = terms, me, state

    def _at(self, *stages: str) -> dict[str, Any]:
        stage = self.state.get("stage", "new")
        if stage not in stages:
            raise refused(f"this site is at {stage!r} in this sum and was asked for something else")
        return self.state

    def advert(self, sign: Sign) -> Message:
        """Two fresh keys. May be asked again until a vector was masked; older keys are forgotten then."""
        self._at("new", "advertised", "shared")
        mask_key, box_key = masks.new_key(), masks.new_key()
        message: Message = {"tag": self.terms.tag}
        message |= {"mask_key": text(masks.public_key(mask_key)), "box_key": text(masks.public_key(box_key))}
        message["signature"] = text(sign(advert_statement(self.terms.tag, self.me, message)))
        keys = {"mask_key": text(mask_key), "box_key": text(box_key), "public": message["mask_key"]}
        self.state = {"stage": "advertised", **keys}
        return message

    def share(self, told: Message) -> Message:
        """Shares of this site's two secrets for its neighbours.

        Every advert is verified, though shares go to neighbours only and the clients of Bell et al. (2020) hear of no others: a name whose keys this
        site had not checked would count for its quorum, and might bring no noise.
        """
        state, terms = self._at("advertised"), self.terms
        with rules("adverts"):
            adverts = {str(s): {k: str(a[k]) for k in ("mask_key", "box_key")} for s, a in told["adverts"].items()}
            if set(adverts) - set(terms.roster):
                raise refused("an advert comes from a site that the roster does not name")
            for site, advert in adverts.items():
                raw(advert["mask_key"], 32), raw(advert["box_key"], 32)
                statement = advert_statement(terms.tag, site, advert)
                verify(terms.roster[site], raw(told["adverts"][site]["signature"]), statement)
        if adverts.get(self.me, {}).get("mask_key") != state["public"]:
            raise refused("this site's own advert is missing or an older one")
        if len({a[k] for a in adverts.values() for k in a}) != 2 * len(adverts):
            raise refused("two adverts carry the same key")
        if len(adverts) < survivors_needed(len(adverts), terms.quorum, terms.colluding):
            raise refused(f"{len(adverts)} sites are too few for a sum")
        salt = transcript(terms.tag, adverts)
        net, point_of = self._graph(adverts, salt), points(adverts)
        holders = {s: point_of[s] for s in sorted({self.me} | net.neighbours(self.me))}
        own = secrets.token_bytes(32)
        seeds = split(own, net.threshold, holders.values())
        keys = split(raw(state["mask_key"], 32), net.threshold, holders.values())
        boxes, box_key = {}, masks.load(raw(state["box_key"], 32))
        with rules("adverts"):  # a key that gives no secret
            for site, point in holders.items():
                if site != self.me:
                    key = sealing_key(box_key, adverts[site]["box_key"], salt, self.me, site)
                    boxes[site] = text(masks.seal(key, seeds[point] + keys[point], salt))
        mine = point_of[self.me]
        held = {self.me: [text(seeds[mine]), text(keys[mine])]}
        self.state = {**state, "stage": "shared", "adverts": adverts, "own": text(own), "held": held}
        return {"boxes": boxes, "commitment": text(commitment(own))}

    def accept(self, told: Message, sign: Sign) -> Mask:
        """The masks for this site's vector. The state forgets the secrets they come from at once, so there is no second vector."""
        state, terms = self._at("shared"), self.terms
        adverts = state["adverts"]
        salt = transcript(terms.tag, adverts)
        with rules("boxes"):
            present = {str(site) for site in told["present"]}
            boxes = {str(s): raw(box) for s, box in told["boxes"].items()}
        if self.me not in present or not present <= set(adverts):
            raise refused("the sites that shared are not among those that advertised")
        if len(present) < survivors_needed(len(adverts), terms.quorum, terms.colluding):
            raise refused(f"{len(present)} sites that shared are too few for a sum")
        near = self._graph(adverts, salt).neighbours(self.me) & present
        if set(boxes) != near:
            raise refused("the boxes are not those of the neighbours that shared")
        held, pairs = dict(state["held"]), {}
        box_key, mask_key = (masks.load(raw(state[k], 32)) for k in ("box_key", "mask_key"))
        with rules("boxes"):
            for site in near:
                key = sealing_key(box_key, adverts[site]["box_key"], salt, site, self.me)
                content = masks.unseal(key, boxes[site], salt)
                if len(content) != 2 * SHARE_BYTES:
                    raise refused("a box does not hold two shares")
                held[site] = [text(content[:SHARE_BYTES]), text(content[SHARE_BYTES:])]
                pairs[pair_seed(mask_key, adverts[site]["mask_key"], salt, self.me, site)] = self.me < site
        self.state = {"stage": "masked", "adverts": adverts, "present": sorted(present), "held": held}
        signature = text(sign(present_statement(salt, sorted(present))))
        return Mask(raw(state["own"], 32), pairs, {"signature": signature})

    def confirm(self, told: Message, sign: Sign) -> Message:
        """This site's word on who survived; it gives one only.

        Only when each surviving neighbour has signed that it was told of the same sites when it masked: a site that was told that its neighbours are
        gone has no mask in common with anybody, and the shares of its own mask, which the neighbours hold, would open its vector alone.
        """
        state, terms = self._at("masked"), self.terms
        with rules("survivors"):
            survivors = sorted({str(site) for site in told["survivors"]})
        salt = transcript(terms.tag, state["adverts"])
        if self.me not in survivors or not set(survivors) <= set(state["present"]):
            raise refused("the survivors are not among the sites that shared")
        if len(survivors) < survivors_needed(len(state["adverts"]), terms.quorum, terms.colluding):
            raise refused(f"{len(survivors)} survivors are too few for a total")
        net = self._graph(state["adverts"], salt)
        if not net.joined(set(survivors), terms.colluding):
            raise refused("the masks would not hold these survivors together")
        near = net.neighbours(self.me) & set(survivors)
        with rules("words on who shared"):
            if set(told["signatures"]) != near:
                raise refused("the words on who shared are not those of the neighbours that survived")
            for site in near:
                verify(terms.roster[site], raw(told["signatures"][site]), present_statement(salt, state["present"]))
        self.state = {**state, "stage": "confirmed", "survivors": survivors}
        return {"signature": text(sign(survivors_statement(salt, survivors)))}

    def unmask(self, told: Message) -> Message:
        """One share a neighbour, never both: of the own mask of a survivor, of the mask key of a site that shared and is gone."""
        state, terms = self._at("confirmed"), self.terms
        survivors = state["survivors"]
        statement = survivors_statement(transcript(terms.tag, state["adverts"]), survivors)
        with rules("signatures"):
            given = {str(s): raw(x) for s, x in told["signatures"].items() if str(s) in survivors}
            for site, signature in given.items():
                verify(terms.roster[site], signature, statement)
        if len(given) < majority(len(state["adverts"]), terms.colluding):
            raise refused(f"{len(given)} sites that agree on the survivors are too few")
        seeds = {s: both[0] for s, both in state["held"].items() if s in survivors}
        keys = {s: both[1] for s, both in state["held"].items() if s not in survivors}
        self.state = {"stage": "done"}
        return {"seeds": seeds, "keys": keys}

    def _graph(self, adverts: Message, salt: bytes) -> Graph:
        return graph(adverts, salt, self.terms.quorum, self.terms.colluding)


class rules:
    """Within it, malformed or forged content is a refusal."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: Any) -> None:
        if isinstance(value, (InvalidSignature, InvalidTag)):
            raise refused(f"the {self.what} are not signed or sealed by those they name") from None
        if isinstance(value, (ValueError, KeyError, TypeError, AttributeError)):
            raise refused(f"the {self.what} are malformed") from None


def verify(public: bytes, signature: bytes, statement: bytes) -> None:
    """Raise ``InvalidSignature`` unless the key's owner signed the statement."""
    Ed25519PublicKey.from_public_bytes(public).verify(signature, statement)


def points(names: Message) -> dict[str, int]:
    """The point of each participant in secret sharing: its place in the alphabet."""
    return {site: number for number, site in enumerate(sorted(names), start=1)}


def sealing_key(private: X25519PrivateKey, peer: str, salt: bytes, sender: str, receiver: str) -> bytes:
    """The key that seals what one site sends another, from the private key of either and the public key (base64) of the other."""
    return masks.agree(private, raw(peer, 32), salt, f"box {sender} {receiver}")


def pair_seed(private: X25519PrivateKey, peer: str, salt: bytes, one: str, other: str) -> bytes:
    """The seed two sites share, from the private key of either and the public key (base64) of the other."""
    first, second = sorted((one, other))
    return masks.agree(private, raw(peer, 32), salt, f"pair {first} {second}")


def commitment(seed: bytes) -> bytes:
    """Hash by which the coordinator notices that shares of a seed were wrong; the seed is uniform, so it says nothing."""
    return hashlib.sha256(masks.DOMAIN + b"own mask" + seed).digest()
