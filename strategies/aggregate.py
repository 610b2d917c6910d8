"""From sites' replies to one total: validate each, then add integers or average weights. Independent of the order of replies."""

from __future__ import annotations

import math

import numpy as np

from medsynx.generators.averaging import centre, weights_of
from medsynx.generators.base import State, Total
from medsynx.plan import PricedStep
from medsynx.privacy import share_divisor
from medsynx.secure_sum.ring import RING, Residues
from medsynx.study import Study
from medsynx.wire import Reply


def usable(reply: Reply, priced: PricedStep, state: State) -> bool:
    """Whether an answer has the planned names, shapes and finite values. ``state`` tells a model's shapes once there is one."""
    step, arrays = priced.step, reply.arrays
    if step.cargo == "secure-sum":
        vector = arrays.get("sum")
        shape = (step.size, RING.width)
        return set(arrays) == {"sum"} and vector is not None and vector.shape == shape and vector.dtype == np.uint8
    if sum(a.size for a in arrays.values()) != step.size:
        return False
    if not all(a.dtype == np.float32 and np.isfinite(a).all() for a in arrays.values()):
        return False
    known = weights_of(state.arrays)
    return not known or {n: a.shape for n, a in arrays.items()} == {n: a.shape for n, a in known.items()}


def combine(replies: dict[str, Reply], priced: PricedStep, study: Study) -> Total:
    """Total of usable replies by site.

    A sum's noise is what every contributing site added: each a share of the priced variance. A model's updates become one by the family
    parameter ``centre``, every site counting once.
    """
    ordered = [replies[site].arrays for site in sorted(replies)]
    if priced.step.cargo == "model-update":
        how = study.family.parameters.get("centre", "mean")
        return Total(centre(ordered, how), 0.0, len(ordered))
    return total_of(RING.add(RING.unpack(a["sum"]) for a in ordered), len(ordered), priced, study)


def total_of(residues: Residues, sites: int, priced: PricedStep, study: Study) -> Total:
    """The total of ``sites`` vectors from its residues; each brought a share of the priced variance."""
    shares = sites / share_divisor(study.privacy, study.rounds.quorum)
    return Total({"sum": RING.decode(residues)}, priced.noise_std * math.sqrt(shares), sites)
