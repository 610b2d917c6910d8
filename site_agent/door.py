"""The door: the only way out of a hospital.

``admit`` decides before any record is touched (approved? planned? allowed? affordable? then reserve), ``release`` turns a raw contribution into
:class:`Cargo` (bound, noise, mask, audit, settle). Cargo is made here and nowhere else, and nothing else that knows a record leaves. A secure sum's
other exchanges carry keys, sealed shares and signatures; ``terms`` decides whether this site takes part.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.programme import full_plan, priced_plan
from medsynx.errors import MedsynxError
from medsynx.generators.base import Arrays, Contribution
from medsynx.plan import PricedStep, Step
from medsynx.privacy import share_std
from medsynx.secure_sum.noise import discrete_gaussian
from medsynx.secure_sum.ring import RING, Residues
from medsynx.secure_sum.terms import EXCHANGES, Terms, refused, roster_digest
from medsynx.study import Study
from medsynx.wire import Reply, Request
from site_agent.audit import Audit
from site_agent.datasets import split_of
from site_agent.identity import ROSTER, public_identity, read_roster
from site_agent.ingest import LocalTable
from site_agent.ledger import Account, Budget, Ledger
from site_agent.patients import PatientBook
from site_agent.policy import Approval, SiteFolder, SitePolicy, check_policy, check_traffic
from site_agent.traffic import step_bytes

_KEY = object()
Mask = Callable[[Residues], Residues]


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
    masked: bool
    split: str


class Door:
    """One site's door.

    Args:
        folder: the site's folder.
        simulated: True only in one-process simulation, where trust mode ``secure-sum`` is rehearsed with plain addition. Any other door lets a sum of
            that mode leave masked or not at all.
    """

    def __init__(self, folder: SiteFolder, *, simulated: bool = False) -> None:
        self.folder, self.simulated = folder, simulated
        self.ledger = Ledger(folder.path / "ledger.sqlite")
        self.audit = Audit(folder.path / "audit.sqlite")
        self.patients = PatientBook(folder.path / "patients.sqlite", self.ledger.chain)

    def admit(self, digest: str, run: str, step: str, *, masked: bool = False) -> Permit:
        """Reserve a step of an approved study. ``masked``: its cargo is going to leave under a mask.

        Raises:
            MedsynxError: ``study-not-approved``, ``policy-refused``, ``step-not-planned``, ``step-replayed``, ``budget-exceeded``.
        """
        with self.audited(digest, run, step):
            approval, policy = self._approved(digest, self._ahead(step, "vector" if masked else ""))
            study, budget, plan = approval.study, policy.budget, priced_plan(approval.study)
            if policy.testing_without_noise:  # what leaves then is charged as what it is: epsilon without end, for good
                plan, budget = plan.without_noise(), Budget(math.inf, budget.delta)
            priced = plan.find(step)
            if priced is None:
                raise MedsynxError("step-not-planned", f"the approved plan has no step {step!r}")
            if self._needs_mask(study, priced.step) != masked:
                raise MedsynxError(
                    "policy-refused", "sums of trust mode secure-sum leave masked, and nothing else does"
                )
            split = split_of(self.folder, approval.dataset, study)
            account = Account(approval.dataset, split, partial(policy.share, approval.dataset))
            self.ledger.reserve(account, digest, run, priced, plan, budget)
            return Permit(study, approval.dataset, run, priced, not policy.testing_without_noise, masked, split)

    def terms(self, digest: str, run: str, step: str, exchange: str) -> Terms:
        """The terms under which this site takes part in a secure sum: all from its own files. Reserves nothing.

        The bytes of this exchange and of all after it must be allowed to leave, so that a sum which cannot end does not begin.

        Raises:
            MedsynxError: as :meth:`admit`, and ``roster-mismatch`` when the roster is not the one the study was approved under or this site is not
                in it.
        """
        with self.audited(digest, run, step):
            if exchange not in EXCHANGES:
                raise refused("no such exchange")
            approval, policy = self._approved(digest, self._ahead(step, exchange))
            study = approval.study
            planned = [s for s in full_plan(study) if s.name == step]  # priced when a vector is asked for
            if not planned:
                raise MedsynxError("step-not-planned", f"the approved plan has no step {step!r}")
            if not self._needs_mask(study, planned[0]):
                raise MedsynxError("policy-refused", f"step {step!r} is no secure sum at this site")
            roster = read_roster(self.folder.path / ROSTER)
            if approval.roster != roster_digest(roster):
                raise MedsynxError("roster-mismatch", "the study was approved under another roster of sites")
            if roster.get(policy.site) != public_identity(self.folder.path):
                raise MedsynxError("roster-mismatch", "the roster does not hold this site's own identity")
            return Terms(digest, run, step, roster, study.rounds.quorum, study.privacy.tolerated_dropouts)

    def again(self, request: Request, reply: Reply) -> None:
        """What left in answer to this very request may leave once more, if the study is still allowed. Charges nothing: the bytes are the same.

        Raises:
            MedsynxError: as :meth:`admit`, and ``step-replayed`` when the audit log does not hold these bytes as the last that left for the step.
        """
        digest, run, step = request.study_digest, request.run, request.step
        with self.audited(digest, run, step):
            size = sum(a.nbytes for a in reply.arrays.values()) + (len(reply.said) if reply.message else 0)
            self._approved(digest, lambda study: size)
            left: list[dict[str, Any]] = []
            if reply.message:
                left.append({"exchange": request.exchange, "sha256": hashlib.sha256(reply.said).hexdigest()})
            if reply.arrays or not reply.message:
                left.append({"arrays": {n: describe(a) for n, a in reply.arrays.items()}})
            mine = [e for e in self.audit.chain.entries() if (e["study"], e["run"], e["step"]) == (digest, run, step)]
            last = [e for e in mine if e["kind"] in ("released", "message")][-len(left) :]
            if [{key: e.get(key) for key in part} for e, part in zip(last, left, strict=False)] != left:
                raise MedsynxError("step-replayed", f"step {step!r} of run {run} was answered before, with other bytes")
            self.audit.again(digest, run, step, size)

    @contextmanager
    def audited(self, digest: str, run: str, step: str) -> Iterator[None]:
        """Within it, a refusal is written down before it is told."""
        try:
            yield
        except MedsynxError as refusal:
            self.audit.refused(digest, run, step, refusal.code)
            raise

    def _ahead(self, step: str, exchange: str) -> Callable[[Study], int]:
        """What leaves from this exchange of a study's step to its end."""
        return lambda study: sum(step_bytes(s, self.folder.sites, exchange) for s in full_plan(study) if s.name == step)

    def _approved(self, digest: str, asked: Callable[[Study], int]) -> tuple[Approval, SitePolicy]:
        """The approval of this digest, if the policy still allows its study, at this hour, and as many bytes as are asked for to leave."""
        approval, policy = self.folder.approval(digest), self.folder.policy()
        check_policy(policy, approval.study, approval.dataset, self.folder.sites)
        spent, left = self.ledger.chain.entries(), self.audit.chain.entries()
        if not spent and any(e["kind"] == "released" for e in left):  # a missing ledger would begin at zero
            raise MedsynxError("ledger-broken", "the audit log knows of cargo that the ledger does not")
        check_traffic(policy.limits, spent, left, digest, asked(approval.study))
        return approval, policy

    def identify(self, permit: Permit, table: LocalTable) -> None:
        """Note who is in a permit's data set, before anything is computed on it.

        Raises:
            MedsynxError: ``patients-shared`` when it was to have a budget of its own, or others were, and it shares patients with them;
                ``patients-lost`` when that cannot be told; ``table-unreadable`` when it changed since the step was admitted.
        """
        if split_of(self.folder, permit.dataset, permit.study) != permit.split:
            raise MedsynxError("table-unreadable", f"data set {permit.dataset} changed while a step was going on")
        policy = self.folder.policy()
        self.patients.note(permit.dataset, table.marks)
        used = {e["dataset"] for e in self.ledger.chain.entries() if e["kind"] == "reserve"}
        self.patients.refuse_shared(permit.dataset, sorted(o for o in used if not policy.share(permit.dataset, o)))

    def _needs_mask(self, study: Study, step: Step) -> bool:
        return study.privacy.trust == "secure-sum" and step.cargo == "secure-sum" and not self.simulated

    def release(self, permit: Permit, contribution: Contribution, mask: Mask | None = None) -> Cargo:
        """Bound, noise, mask, write down what leaves, and hand it over. The reservation stands whatever happens here.

        Args:
            mask: adds this site's masks to residues; given exactly when the permit says so.

        Raises:
            MedsynxError: ``cargo-malformed`` when the contribution is not what the plan says.
        """
        step = permit.step.step
        if permit.masked != (mask is not None):
            raise MedsynxError("cargo-malformed", f"step {step.name!r} was admitted otherwise than it is to leave")
        if step.cargo == "secure-sum":
            arrays = self._sum(permit, contribution, mask)
        else:
            arrays = self._update(permit, contribution)
        self.audit.released(permit.study.digest, permit.run, step.name, {n: describe(a) for n, a in arrays.items()})
        self.ledger.settle(permit.dataset, permit.run, step.name)
        return Cargo(arrays, key=_KEY)

    def _sum(self, permit: Permit, contribution: Contribution, mask: Mask | None) -> Arrays:
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
        residues = RING.encode(bounded)
        return {"sum": RING.pack(mask(residues) if mask else residues)}

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
