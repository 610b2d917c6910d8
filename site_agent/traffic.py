"""How many bytes may leave in one step and in one run: known from the study and the roster before anything leaves.

Cargo is sized by the plan. The other exchanges of a masked sum are sized here, as the JSON that the audit log hashes, with everybody of the roster
taking part and everybody as a neighbour: a site never says more. What the transport adds (protobuf, TLS) is not counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection

from evaluation.programme import full_plan
from medsynx.plan import Step
from medsynx.secure_sum import masks
from medsynx.secure_sum.shamir import SHARE_BYTES
from medsynx.secure_sum.terms import EXCHANGES, LEAST_SURVIVORS, text
from medsynx.study import Study

Sites = Callable[[], Collection[str]]  #: names in the roster, read where they matter
BOX_BYTES = masks.NONCE + 2 * SHARE_BYTES + 16  #: two shares, sealed: nonce, content and the tag of AES-GCM


def message_bytes(exchange: str, sites: Collection[str]) -> int:
    """Most bytes of a site's message in an exchange of a secure sum; with ``mask`` it goes beside the cargo.

    Args:
        sites: names in the roster.
    """
    key, signature, share, box = (text(bytes(n)) for n in (32, 64, SHARE_BYTES, BOX_BYTES))
    most = {
        "advert": {"tag": "0" * 64, "mask_key": key, "box_key": key, "signature": signature},
        "share": {"boxes": dict.fromkeys(sorted(sites, key=len)[1:], box), "commitment": key},  # none for itself
        "mask": {"signature": signature},
        "confirm": {"signature": signature},
        "unmask": {"seeds": dict.fromkeys(sites, share), "keys": {}},
    }
    return len(json.dumps(most[exchange]))


def step_bytes(step: Step, sites: Sites, exchange: str) -> int:
    """Most bytes that leave from this exchange of a step to its end; ``vector`` is ``mask`` whose message is written down already.

    No exchange (empty) is cargo in the plain.
    """
    if not exchange:
        return step.bytes
    if exchange == "vector":
        return step.bytes + step_bytes(step, sites, "confirm")
    ahead = EXCHANGES[EXCHANGES.index(exchange) :]
    return sum(message_bytes(e, sites()) + (step.bytes if e == "mask" else 0) for e in ahead)


def run_bytes(study: Study, sites: Sites) -> tuple[int, int]:
    """Most bytes of one run at one site: all of them, and those of messages alone.

    Args:
        sites: if it gives none, as many as the quorum are reckoned with, of the longest name that a site may have.
    """
    steps = full_plan(study)
    cargo = sum(s.bytes for s in steps)
    if study.privacy.trust != "secure-sum":
        return cargo, 0
    names = sites() or [f"{k:063d}" for k in range(max(study.rounds.quorum, LEAST_SURVIVORS))]
    spoken = sum(message_bytes(e, names) for e in EXCHANGES) * sum(s.cargo == "secure-sum" for s in steps)
    return cargo + spoken, spoken
