"""Steps and plans: what will leave a hospital is known, sized and priced before any data is touched.

A family lists its steps; :func:`medsynx.privacy.calibrate` prices them. The privacy officer approves the priced plan by approving the study, and
the door refuses everything that is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from medsynx.secure_sum.ring import RING

Cargo = Literal["secure-sum", "model-update"]
Part = Literal["train", "holdout", "all"]


@dataclass(frozen=True)
class Sensitivity:
    """How much one patient (added or removed) can move a contribution, in units of the cargo.

    Attributes:
        l2: Euclidean bound.
        linf: bound for a single entry.
        source: why this holds (paper, section or argument).
    """

    l2: float
    linf: float
    source: str


@dataclass(frozen=True)
class Sampling:
    """Poisson sampling of patients for DP-SGD: each of ``iterations`` noisy gradients sees a patient with probability ``rate``."""

    rate: float
    iterations: int


@dataclass(frozen=True)
class Step:
    """One exchange with every site.

    Attributes:
        name: unique within the plan, for example ``"tables"`` or ``"round 7"``.
        cargo: ``secure-sum`` (a vector of bounded integers) or ``model-update`` (weights trained by DP-SGD).
        part: which patients it sees. A patient is either a training or a hold-out patient of a data set, for good, so
            steps on different parts compose in parallel; ``all`` sees both.
        size: numbers that leave one site.
        share: share of the budget among the Gaussian steps on the same part (steps with ``sampling`` take what they leave).
        sensitivity: for ``secure-sum``.
        sampling: for ``model-update``, and for a ``secure-sum`` over a Poisson sample of the patients (one iteration).
        limit: for ``secure-sum``: largest absolute value an honest site can send before noise, in cargo units (public).
        reach: for ``model-update``: how far an honest site can move a weight from where the step began (public); None: not known.
    """

    name: str
    cargo: Cargo
    part: Part
    size: int
    share: float
    sensitivity: Sensitivity | None = None
    sampling: Sampling | None = None
    limit: int = 2**30
    reach: float | None = None

    @property
    def bytes(self) -> int:
        """What leaves one site: residues of :data:`medsynx.secure_sum.ring.RING`, or float32 weights."""
        return self.size * (RING.width if self.cargo == "secure-sum" else 4)

    def leaves_as(self, trust: str) -> str:
        """In words for people: what the coordinator sees of it in a study of this trust mode."""
        if self.cargo == "model-update":
            return "noised weights, not masked"
        return "a masked sum" if trust == "secure-sum" else "a noised sum, not masked"


@dataclass(frozen=True)
class PricedStep:
    """A step with its noise and its DP event (dp-accounting's), as one site spends it against everybody who sees the noised total.

    ``noise_multiplier`` is noise standard deviation / L2 sensitivity (clip norm for DP-SGD).
    """

    step: Step
    noise_multiplier: float
    event: Any

    @property
    def noise_std(self) -> float:
        """Standard deviation of the total noise in cargo units (``secure-sum`` only)."""
        assert self.step.sensitivity is not None
        return self.noise_multiplier * self.step.sensitivity.l2


@dataclass(frozen=True)
class Plan:
    """An upper bound over everything a run of the study may ask. Order is the order of the run."""

    steps: tuple[PricedStep, ...]

    def find(self, name: str) -> PricedStep | None:
        """The step of this name, or None."""
        return next((s for s in self.steps if s.step.name == name), None)

    def without_noise(self) -> Plan:
        """The same steps with noise switched off: for tests that compare aggregates. Nothing made with it is private, and its events say so."""
        from dp_accounting.dp_event import NonPrivateDpEvent

        return Plan(tuple(replace(s, noise_multiplier=0.0, event=NonPrivateDpEvent()) for s in self.steps))

    @property
    def bytes_per_site(self) -> int:
        """Upper bound of what leaves one site."""
        return sum(s.step.bytes for s in self.steps)
