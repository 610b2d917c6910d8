"""From sites' replies to one total: validate each, then add integers or average weights. Independent of the order of replies."""

from __future__ import annotations

import math

import numpy as np

from medsynx.generators.averaging import centre, weights_of
from medsynx.generators.base import Total
from medsynx.plan import PricedStep
from medsynx.privacy import share_divisor, share_std
from medsynx.secure_sum.ring import RING, Residues
from medsynx.study import Study
from medsynx.wire import Reply, Request

TAIL = 12.0  #: standard deviations; an honest site's noise goes further with a chance below 1e-32 an entry


def fault(reply: Reply, request: Request, priced: PricedStep, study: Study, *, masked: bool = False) -> str | None:
    """Why an answer does not count, as a code; None when it does. The rules are public and the same for every site.

    ``reply-replayed``: it answers another request (of this or any run). ``reply-invalid``: other names, types or shapes than planned.
    ``reply-not-finite``: a weight is NaN or infinite. ``reply-too-large``: an entry of a sum beyond the step's limit and :data:`TAIL` standard
    deviations of the site's noise (a masked vector cannot be looked at), or a weight moved further than the step's ``reach``.
    """
    step, arrays = priced.step, reply.arrays
    if reply.answers != request.digest:
        return "reply-replayed"
    if step.cargo == "secure-sum":
        vector = arrays.get("sum")
        if (
            set(arrays) != {"sum"}
            or vector is None
            or vector.shape != (step.size, RING.width)
            or vector.dtype != np.uint8
        ):
            return "reply-invalid"
        bound = step.limit + TAIL * share_std(priced, study.privacy, study.rounds.quorum)
        too_large = not masked and np.abs(RING.decode(RING.unpack(vector))).max(initial=0) > bound
        return "reply-too-large" if too_large else None
    known = weights_of(request.state.arrays)
    if sum(a.size for a in arrays.values()) != step.size or any(a.dtype != np.float32 for a in arrays.values()):
        return "reply-invalid"
    if known and {n: a.shape for n, a in arrays.items()} != {n: a.shape for n, a in known.items()}:
        return "reply-invalid"
    if not all(np.isfinite(a).all() for a in arrays.values()):
        return "reply-not-finite"
    moved = max((float(np.abs(arrays[n].astype(np.float64) - a).max(initial=0)) for n, a in known.items()), default=0.0)
    return "reply-too-large" if step.reach is not None and moved > step.reach else None


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
