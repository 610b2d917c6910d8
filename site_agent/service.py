"""One request in, one reply out: the whole life of a step inside a hospital. Transport-free, so that Flower and a simulation run the same code."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from evaluation.programme import evaluation_of, is_evaluation
from medsynx.errors import MedsynxError
from medsynx.files import PRIVATE, replacing
from medsynx.generators import get_family
from medsynx.generators.base import Arrays
from medsynx.logs import printable
from medsynx.secure_sum.terms import Terms
from medsynx.wire import Reply, Request
from site_agent.answers import Answers
from site_agent.audit import RUN
from site_agent.datasets import load_dataset
from site_agent.door import Door, Mask, Permit
from site_agent.ingest import LocalTable
from site_agent.policy import SiteFolder
from site_agent.secure_sum import SecureSums

log = logging.getLogger("medsynx.site")

#: Refusals that follow from the request, the policy and the ledger alone. Anything a record could have caused travels as ``site-failed``.
OPEN_CODES = frozenset(
    {
        "study-not-approved",
        "policy-refused",
        "budget-exceeded",
        "step-not-planned",
        "step-replayed",
        "ledger-broken",
        "budget-impossible",
        "roster-mismatch",
        "secure-sum-refused",
    }
)


class SiteService:
    """Answers requests for one site folder.

    Args:
        folder: the site's folder.
        simulated: see :class:`site_agent.door.Door`.
        strict: refuse unknown columns and levels, and patients above the cap.
    """

    def __init__(self, folder: SiteFolder, *, simulated: bool = False, strict: bool = False) -> None:
        self.folder, self.simulated, self.strict = folder, simulated, strict
        self.answers = Answers(folder.path / "runs")
        self._table: tuple[tuple[str, str, str], LocalTable] | None = None

    @classmethod
    def open(cls, path: Path) -> SiteService:
        """The service of a site's folder."""
        return cls(SiteFolder(path))

    @cached_property
    def door(self) -> Door:
        """The site's door, with its books: opened by the first answer, so that a spoilt book is an answer too."""
        return Door(self.folder, simulated=self.simulated)

    def answer(self, request: Request) -> Reply:
        """Never raises; the reason of a failure stays in the site's own log."""
        try:
            return replace(self._answer(request), answers=request.digest)
        except MedsynxError as refusal:
            log.warning("refused step %.64r of run %.64r: %s", request.step, request.run, printable(str(refusal)))
            if refusal.code in OPEN_CODES:
                return Reply(refusal=refusal.code)
            return self._failed(request, refusal.code)
        except Exception:
            log.exception("step %.64r of run %.64r failed", request.step, request.run)
            return self._failed(request, "site-failed")

    def _failed(self, request: Request, code: str) -> Reply:
        """``site-failed``, which is what leaves; the audit log says so, and this site's own code."""
        try:
            self.door.audit.refused(request.study_digest, request.run, request.step, code)
        except Exception:
            log.exception("the audit log does not take that step %.64r failed", request.step)
        return Reply(refusal="site-failed")

    def _answer(self, request: Request) -> Reply:
        if not RUN.fullmatch(request.run):
            raise MedsynxError("step-not-planned", "the run has no proper name")
        asked = request.study_digest, request.run, request.step
        terms = self.door.terms(*asked, request.exchange) if request.exchange else None
        if lost := self.answers.find(request):
            self.door.again(request, lost)
            return lost
        reply = self._exchange(request, terms) if terms else self._step(request)
        try:
            self.answers.keep(request, reply)
        except OSError:  # no room: this one could not be given again
            log.exception("the answer to step %.64r of run %.64r is not kept", request.step, request.run)
        return reply

    def _exchange(self, request: Request, terms: Terms) -> Reply:
        """One exchange of a secure sum."""
        sums = SecureSums(self.folder, self.door.audit)
        with self.door.audited(request.study_digest, request.run, request.step):
            if request.exchange != "mask":
                return Reply(message=sums.answer(terms, request.exchange, request.message))
            mask = sums.accept(terms, request.message)  # can be had once, and is taken before a record is touched
        return replace(self._step(request, mask), message=mask.message)

    def _step(self, request: Request, mask: Mask | None = None) -> Reply:
        """Admit, contribute, release."""
        permit = self.door.admit(request.study_digest, request.run, request.step, masked=mask is not None)
        study, priced = permit.study, permit.step
        table = self.table(permit)
        table.require(self.folder.policy().limits.minimum_patients)
        family = evaluation_of(study) if is_evaluation(priced.step) else get_family(study.family.name)
        kept = self._kept(permit)
        contribution = family.contribute(study, priced, request.state, table.parts[priced.step.part], kept)
        cargo = self.door.release(permit, contribution, mask)
        if contribution.keep:
            self._keep(permit, contribution.keep)
        return Reply(cargo.arrays, private=permit.private)

    def table(self, permit: Permit) -> LocalTable:
        """The permit's data set, encoded for its study; kept for the next step of the same study."""
        at = (permit.study.digest, permit.dataset, permit.split)
        if self._table is None or self._table[0] != at:
            table = load_dataset(self.folder, permit.dataset, permit.study, strict=self.strict)
            self.door.identify(permit, table)
            self._table = (at, table)
        return self._table[1]

    def _file(self, permit: Permit) -> Path:
        """Of one run of one study on one data set: two runs may have one name, and what a study has learned of patients is for no other."""
        of = hashlib.sha256(f"{permit.study.digest} {permit.dataset}".encode()).hexdigest()[:16]
        return self.folder.path / "runs" / f"{permit.run}.{of}.npz"

    def _kept(self, permit: Permit) -> Arrays:
        file = self._file(permit)
        if not file.exists():
            return {}
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)

    def _keep(self, permit: Permit, arrays: Arrays) -> None:
        file = self._file(permit)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        with replacing(file, PRIVATE) as out:
            np.savez(out, **arrays)
