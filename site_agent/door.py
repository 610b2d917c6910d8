"""The door: the only way out of a hospital.

``admit`` decides before any record is touched (approved? planned? allowed? affordable? then reserve), ``release`` turns a raw contribution into
:class:`Cargo` (bound, noise, audit, settle). Cargo is made here and nowhere else, and nothing else leaves.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.programme import priced_plan
from medsynx.errors import MedsynxError
from medsynx.generators.base import Arrays, Contribution
from medsynx.plan import PricedStep
from medsynx.privacy import share_std
from medsynx.secure_sum.noise import discrete_gaussian
from medsynx.secure_sum.ring import RING
from medsynx.study import Study
from site_agent.audit import Audit
from site_agent.ledger import Budget, Ledger
from site_agent.policy import SiteFolder, check_policy

_KEY = object()


class Cargo:
    """Bounded, noised arrays that may leave. Only :class:`Door` can make one."""

    def __init__(self, arrays: Arrays, *, key: object) -> None:
        if key is not _KEY:
            raise TypeError("cargo is made by the door only")
        self.arrays = arrays


@dataclass(frozen=True)
class Permit:
    """An admitted step: its price is already reserved in the ledger."""

    study: Study
    dataset: str
    run: str
    step: PricedStep
    private: bool


class Door:
    """One site's door.

    Args:
        folder: the site's folder.
        simulated: True only in one-process simulation, where trust mode ``secure-sum`` may be rehearsed with plain addition. A deployed door refuses
            that mode until a real protocol masks the vectors.
    """

    def __init__(self, folder: SiteFolder, *, simulated: bool = False) -> None:
        self.folder, self.simulated = folder, simulated
        self.ledger = Ledger(folder.path / "ledger.sqlite")
        self.audit = Audit(folder.path / "audit.sqlite")

    def admit(self, digest: str, run: str, step: str) -> Permit:
        """Reserve a step of an approved study.

        Raises:
            MedsynxError: ``study-not-approved``, ``policy-refused``, ``step-not-planned``, ``step-replayed``, ``budget-exceeded``.
        """
        try:
            return self._admit(digest, run, step)
        except MedsynxError as refusal:
            self.audit.refused(digest, run, step, refusal.code)
            raise

    def _admit(self, digest: str, run: str, step: str) -> Permit:
        approval, policy = self.folder.approval(digest), self.folder.policy()
        study = approval.study
        check_policy(policy, study, approval.dataset)
        if study.privacy.trust == "secure-sum" and not self.simulated:
            raise MedsynxError(
                "policy-refused",
                "trust mode secure-sum needs masked vectors, which a deployed site cannot make yet",
                hint="Use `trust: local` in the study.",
            )
        plan, budget = priced_plan(study), policy.budget
        if policy.testing_without_noise:  # what leaves then is charged as what it is: epsilon without end, for good
            plan, budget = plan.without_noise(), Budget(math.inf, budget.delta)
        priced = plan.find(step)
        if priced is None:
            raise MedsynxError("step-not-planned", f"the approved plan has no step {step!r}")
        self.ledger.reserve(approval.dataset, digest, run, priced, plan, budget)
        return Permit(study, approval.dataset, run, priced, private=not policy.testing_without_noise)

    def release(self, permit: Permit, contribution: Contribution) -> Cargo:
        """Bound, noise, write down what leaves, and hand it over. The reservation stands whatever happens here.

        Raises:
            MedsynxError: ``cargo-malformed`` when the contribution is not what the plan says.
        """
        step = permit.step.step
        arrays = self._sum(permit, contribution) if step.cargo == "secure-sum" else self._update(permit, contribution)
        self.audit.released(permit.study.digest, permit.run, step.name, {n: describe(a) for n, a in arrays.items()})
        self.ledger.settle(permit.dataset, permit.run, step.name)
        return Cargo(arrays, key=_KEY)

    def _sum(self, permit: Permit, contribution: Contribution) -> Arrays:
        step, vector = permit.step.step, contribution.arrays.get("sum")
        if (
            set(contribution.arrays) != {"sum"}
            or vector is None
            or vector.dtype != np.int64
            or vector.shape != (step.size,)
        ):
            raise MedsynxError("cargo-malformed", f"step {step.name!r} gave something else than {step.size} integers")
        bounded = np.clip(vector, -step.limit, step.limit)
        if permit.private:
            std = share_std(permit.step, permit.study.privacy, permit.study.rounds.quorum)
            bounded = bounded + discrete_gaussian(std, step.size)
        return {"sum": RING.pack(RING.encode(bounded))}

    def _update(self, permit: Permit, contribution: Contribution) -> Arrays:
        step, arrays = permit.step.step, contribution.arrays
        numbers = sum(a.size for a in arrays.values())
        if numbers != step.size or not all(a.dtype == np.float32 and np.isfinite(a).all() for a in arrays.values()):
            raise MedsynxError(
                "cargo-malformed", f"step {step.name!r} gave something else than {step.size} finite weights"
            )
        return dict(arrays)


def describe(array: NDArray[Any]) -> dict[str, Any]:
    """What the audit log keeps of an array that left: shape, type, bytes and SHA-256."""
    raw = np.ascontiguousarray(array).tobytes()
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "bytes": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
