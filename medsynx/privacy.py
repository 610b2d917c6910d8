"""From DP events to epsilon, and from a budget to noise. One accountant (PLD), one neighbouring relation (add or remove one patient).

The noise of integer sums, in shares or whole, is :mod:`medsynx.secure_sum.noise`'s; its docstring says why it is charged as it is here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

from medsynx.errors import MedsynxError
from medsynx.plan import Part, Plan, PricedStep, Step
from medsynx.secure_sum.noise import GRID_CUSHION, MIN_GRID
from medsynx.study import PrivacySpec

LEAST_NOISE = 0.05
ACCOUNTANT = "dp-accounting PLD, add-or-remove-one"


@dataclass(frozen=True)
class Guarantee:
    """A privacy statement: ``(epsilon, delta)`` per ``unit`` against an ``adversary``.

    ``epsilon`` is infinite when noise was off.
    """

    epsilon: float
    delta: float
    adversary: Literal["researcher", "coordinator"]
    unit: str = "patient"
    neighbours: str = "add or remove one patient of one site"
    accountant: str = ACCOUNTANT


def gaussian_event(noise_multiplier: float) -> Any:
    """DP event of one integer sum noised at ``noise_multiplier`` times its L2 sensitivity; non-private at 0."""
    from dp_accounting import dp_event as d

    return d.GaussianDpEvent(noise_multiplier * GRID_CUSHION) if noise_multiplier > 0 else d.NonPrivateDpEvent()


def dpsgd_event(noise_multiplier: float, rate: float, iterations: int) -> Any:
    """DP event of ``iterations`` Poisson-sampled noisy gradients (Abadi et al. 2016); non-private at 0."""
    from dp_accounting import dp_event as d

    if noise_multiplier <= 0:
        return d.NonPrivateDpEvent()
    return d.SelfComposedDpEvent(d.PoissonSampledDpEvent(rate, d.GaussianDpEvent(noise_multiplier)), iterations)


def epsilon(events: Iterable[Any], delta: float) -> float:
    """Epsilon of the composition of ``events`` at ``delta``: 0 for none, infinite when one of them is not private."""
    texts = tuple(sorted(event_to_json(e) for e in events))
    return _epsilon(texts, delta) if texts else 0.0


@lru_cache(maxsize=4096)
def _epsilon(texts: tuple[str, ...], delta: float) -> float:
    from dp_accounting import dp_event as d
    from dp_accounting.pld import PLDAccountant

    events = _merged([event_from_json(t) for t in texts])
    if any(isinstance(e, d.NonPrivateDpEvent) for e in events):
        return math.inf
    accountant = PLDAccountant()
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(delta))


def _merged(events: Sequence[Any]) -> list[Any]:
    """Compose Gaussians exactly (their inverse variances add) and equal DP-SGD steps by count: PLD then convolves a handful of terms."""
    from dp_accounting import dp_event as d

    precision, sgd, rest = 0.0, {}, []  # type: ignore[var-annotated]
    for e in events:
        if isinstance(e, d.GaussianDpEvent):
            precision += e.noise_multiplier**-2
        elif isinstance(e, d.SelfComposedDpEvent):
            sgd[e.event] = sgd.get(e.event, 0) + e.count
        elif isinstance(e, d.ComposedDpEvent):
            rest += list(e.events)
        else:
            rest.append(e)
    out = [d.GaussianDpEvent(precision**-0.5)] if precision else []
    return out + [d.SelfComposedDpEvent(e, n) for e, n in sgd.items()] + rest


def event_to_json(event: Any) -> str:
    """A DP event as JSON, so that a ledger or a bundle can keep it and anybody can re-account it."""
    from dp_accounting import dp_event as d

    def plain(e: Any) -> dict[str, Any]:
        match e:
            case d.GaussianDpEvent():
                return {"gaussian": {"noise_multiplier": float(e.noise_multiplier)}}
            case d.PoissonSampledDpEvent():
                return {"poisson-sampled": {"rate": float(e.sampling_probability), "event": plain(e.event)}}
            case d.SelfComposedDpEvent():
                return {"self-composed": {"count": int(e.count), "event": plain(e.event)}}
            case d.ComposedDpEvent():
                return {"composed": [plain(x) for x in e.events]}
            case d.NonPrivateDpEvent():
                return {"non-private": {}}
        raise TypeError(f"no JSON form for {type(e).__name__}")

    return json.dumps(plain(event), sort_keys=True)


def event_from_json(text: str) -> Any:
    """Inverse of :func:`event_to_json`. Raises ValueError for anything it does not know."""
    from dp_accounting import dp_event as d

    def build(x: Any) -> Any:
        match x:
            case {"gaussian": {"noise_multiplier": m}}:
                return d.GaussianDpEvent(float(m))
            case {"poisson-sampled": {"rate": q, "event": e}}:
                return d.PoissonSampledDpEvent(float(q), build(e))
            case {"self-composed": {"count": n, "event": e}}:
                return d.SelfComposedDpEvent(build(e), int(n))
            case {"composed": [*es]}:
                return d.ComposedDpEvent([build(e) for e in es])
            case {"non-private": {}}:
                return d.NonPrivateDpEvent()
        raise ValueError("not a DP event")

    return build(json.loads(text))


def _smallest(fits: Callable[[float], bool], what: str, low: float = 0.6, high: float = 1.2) -> float:
    """Smallest noise multiplier (to 4 digits, from above) for which ``fits``; ``low`` and ``high`` are a first guess of a bracket.

    Never below :data:`LEAST_NOISE`, where the accountant's arrays grow without bound: such a budget then simply keeps more noise than it needs.
    """
    while fits(low):
        if low <= LEAST_NOISE:
            return low
        low, high = max(low / 2, LEAST_NOISE), low
    while not fits(high):
        low, high = high, high * 2
        if high > 1e6:
            raise MedsynxError("budget-impossible", f"no noise reaches the budget of {what}")
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


@lru_cache(maxsize=256)
def gaussian_multiplier(epsilon_: float, delta: float) -> float:
    """Noise multiplier of one Gaussian sum that meets ``(epsilon, delta)``; the accountant has the last word on a closed-form guess."""
    guess = _balle_wang(epsilon_, delta) / GRID_CUSHION

    def fits(m: float) -> bool:
        return epsilon([gaussian_event(m)], delta) <= epsilon_

    return _smallest(
        fits, f"epsilon {epsilon_:g}", max(guess * 0.9999, LEAST_NOISE), max(guess * 1.0001, 2 * LEAST_NOISE)
    )


def _balle_wang(epsilon_: float, delta: float) -> float:
    """Noise multiplier of the Gaussian mechanism in closed form (Balle and Wang 2018, theorem 8), by bisection."""
    from scipy.special import log_ndtr

    def exceeds(m: float) -> bool:
        a, b = 1 / (2 * m), epsilon_ * m
        first, second = math.exp(log_ndtr(a - b)), math.exp(epsilon_ + log_ndtr(-a - b))
        return bool(first - second > delta)

    low, high = 1e-3, 1e9
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return high


def calibrate(privacy: PrivacySpec, steps: Sequence[Step]) -> Plan:
    """Price steps so that a patient of either part spends at most the budget.

    Gaussian steps on a part split the budget of one Gaussian by their shares (inverse variances add); a part's steps on samples
    (model-updates, sums of gradients) share one noise multiplier, the smallest that still fits beside those Gaussians. A step on
    ``all`` counts on both parts.

    Raises:
        MedsynxError: ``budget-impossible`` when no noise fits.
    """
    whole = gaussian_multiplier(privacy.epsilon, privacy.delta)

    def gaussian(step: Step) -> float:
        return whole / math.sqrt(step.share)

    multiplier = {s.name: gaussian(s) for s in steps if s.sampling is None}
    sgd = [s for s in steps if s.sampling is not None]
    if sgd:
        beside = [gaussian_event(multiplier[s.name]) for s in steps if s.sampling is None and s.part != "holdout"]

        def fits(m: float) -> bool:
            return epsilon([*beside, *(_sgd_event(s, m) for s in sgd)], privacy.delta) <= privacy.epsilon

        found = _smallest(fits, f"epsilon {privacy.epsilon:g} over {len(sgd)} rounds")
        multiplier |= {s.name: found for s in sgd}
    priced = tuple(PricedStep(s, m := multiplier[s.name], _sum_event(s, m)) for s in steps)
    plan = Plan(priced)
    assert epsilon_of_plan(plan, privacy.delta) <= privacy.epsilon * (1 + 1e-9)
    return plan


def _sgd_event(step: Step, noise_multiplier: float) -> Any:
    assert step.sampling is not None
    cushion = GRID_CUSHION if step.cargo == "secure-sum" else 1.0
    return dpsgd_event(noise_multiplier * cushion, step.sampling.rate, step.sampling.iterations)


def _sum_event(step: Step, noise_multiplier: float) -> Any:
    return gaussian_event(noise_multiplier) if step.sampling is None else _sgd_event(step, noise_multiplier)


def epsilon_of_parts(spent: Iterable[tuple[Part, Any]], delta: float) -> float:
    """Epsilon for the worse of a training and a hold-out patient. A patient is one or the other for good, so the parts compose in parallel."""
    spent = list(spent)
    return max(epsilon([e for part, e in spent if part != other], delta) for other in ("train", "holdout"))


def epsilon_of_plan(plan: Plan, delta: float) -> float:
    """What a whole plan costs a patient of one site."""
    return epsilon_of_parts([(s.step.part, s.event) for s in plan.steps], delta)


def share_divisor(privacy: PrivacySpec, quorum: int) -> int:
    """Into how many shares the noise of a sum is split: 1 in ``local`` mode, the sites sure to be honest and present in ``secure-sum`` mode."""
    return 1 if privacy.trust == "local" else quorum - privacy.tolerated_dropouts


def share_std(priced: PricedStep, privacy: PrivacySpec, quorum: int) -> float:
    """Standard deviation of what one site adds to a sum, in units.

    Raises:
        MedsynxError: ``budget-impossible`` when that is too little for a grid of whole units.
    """
    std = priced.noise_std / math.sqrt(share_divisor(privacy, quorum))
    if std < MIN_GRID:
        raise MedsynxError(
            "budget-impossible",
            f"step {priced.step.name!r}: each site would add noise of {std:.3g} units, {MIN_GRID} are the least",
            hint="Use a smaller epsilon or fewer sites in the quorum.",
        )
    return std


def guarantees(privacy: PrivacySpec, quorum: int, plan: Plan, *, noise: bool = True) -> tuple[Guarantee, Guarantee]:
    """What holds against researchers, who see noised totals, and against the coordinator, who may see one site's noised share.

    The statement prices the whole approved plan, whether or not a run used all of it.
    """
    if not noise:
        return _guarantee(math.inf, privacy, "researcher"), _guarantee(math.inf, privacy, "coordinator")
    divisor = share_divisor(privacy, quorum)
    alone = [
        (
            s.step.part,
            s.event if s.step.cargo == "model-update" else _sum_event(s.step, s.noise_multiplier / math.sqrt(divisor)),
        )
        for s in plan.steps
    ]
    return (
        _guarantee(epsilon_of_plan(plan, privacy.delta), privacy, "researcher"),
        _guarantee(epsilon_of_parts(alone, privacy.delta), privacy, "coordinator"),
    )


def _zcdp(event: Any) -> float | None:
    """Rho of a Gaussian event (Bun and Steinke 2016, proposition 1.6); None without noise."""
    multiplier = getattr(event, "noise_multiplier", 0.0)
    return 1 / (2 * multiplier**2) if multiplier else None


def _guarantee(value: float, privacy: PrivacySpec, adversary: Literal["researcher", "coordinator"]) -> Guarantee:
    return Guarantee(value, privacy.delta, adversary, privacy.unit)


def statement(privacy: PrivacySpec, quorum: int, plan: Plan, *, noise: bool = True) -> dict[str, Any]:
    """The JSON privacy statement of a bundle: both guarantees, the trust mode and every event. Infinite epsilon is null."""
    both = [asdict(g) for g in guarantees(privacy, quorum, plan, noise=noise)]
    for g in both:
        g["epsilon"] = g["epsilon"] if math.isfinite(g["epsilon"]) else None
    return {
        "private": noise,
        "trust": privacy.trust,
        "guarantees": both,
        "max_records_per_patient": privacy.max_records_per_patient,
        "records": privacy.records,
        "note": "A patient seen at m sites is counted at each of them: epsilon then adds up over those sites.",
        "events": [
            {
                "step": s.step.name,
                "part": s.step.part,
                "cargo": s.step.cargo,
                "noise_multiplier": s.noise_multiplier,
                "zcdp": None if s.step.cargo == "model-update" else _zcdp(s.event),
                "event": json.loads(event_to_json(s.event)),
            }
            for s in plan.steps
        ],
    }
