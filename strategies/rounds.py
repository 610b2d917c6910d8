"""Rounds that tell the truth: each step of the approved plan, asked of every site, with a quorum and a deadline.

The coordinator sees noised totals only; choosing, fitting and judging from them is post-processing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import federated, federated_images
from evaluation.programme import evaluation_of, priced_plan
from medsynx.codec import Codes
from medsynx.errors import MedsynxError
from medsynx.generators import get_family
from medsynx.generators.averaging import weights_of
from medsynx.generators.base import Arrays, Artefact, Family, State, Total
from medsynx.image_samplers import Images, open_image_sampler
from medsynx.plan import Plan, PricedStep
from medsynx.progress import listening
from medsynx.samplers import open_sampler
from medsynx.study import Study
from medsynx.wire import Reply, Request
from strategies import checkpoint
from strategies.aggregate import combine, fault, total_of
from strategies.attendance import Attendance
from strategies.federation import Answer, Federation
from strategies.journal import Journal
from strategies.secure_sum import SecureSum, TooFew

JUDGED_ROWS = 20_000  #: synthetic rows drawn at the coordinator for the evaluation
SHOWN_IMAGES = 10  #: synthetic images of each class drawn for the report


class QuorumLost(MedsynxError):
    """Fewer sites than the quorum gave a usable answer; ``missing`` says who did not and why."""

    def __init__(self, step: str, quorum: int, missing: dict[str, str]) -> None:
        why = ", ".join(f"{site} ({reason})" for site, reason in sorted(missing.items())) or "no site was there"
        super().__init__("quorum-lost", f"step {step!r}: fewer than {quorum} sites answered; missing: {why}")
        self.missing = missing


@dataclass(frozen=True)
class Round:
    """One finished exchange: who took part, and why the others did not. No counts."""

    step: str
    seconds: float
    answered: list[str]
    missing: dict[str, str]
    bytes_per_site: int


@dataclass(frozen=True)
class Progress:
    """What a watcher sees while a run goes on: ``round`` of ``rounds`` steps, exchanges or the training at the coordinator."""

    step: str
    round: int
    rounds: int
    sites: dict[str, str]


@dataclass
class Outcome:
    """A finished run; ``synthetic`` is what its report judges or shows."""

    run: str
    study: Study
    plan: Plan
    artefact: Artefact
    synthetic: Codes | Images
    figures: dict[str, Any] | None
    judged: State | None
    private: bool
    rounds: list[Round] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def bytes_per_site(self) -> int:
        """Bytes of cargo that left each site over the run."""
        return sum(r.bytes_per_site for r in self.rounds)

    @property
    def sites(self) -> list[str]:
        """Every site that contributed at least once."""
        return sorted({s for r in self.rounds for s in r.answered})


Watcher = Callable[[Progress], None]


class Run:
    """One run of one study over a federation.

    Args:
        name: names the run at the sites: lower case letters, digits and dashes.
        watch: called before and after each exchange.
        masked: whether the sums of trust mode ``secure-sum`` run the protocol of that name. False in a simulation only, whose sites add in the plain.
        checkpoint: file written after each exchange; a run of this name that finds its own there goes on behind the last one.
    """

    def __init__(
        self,
        study: Study,
        federation: Federation,
        name: str,
        watch: Watcher = lambda progress: None,
        checkpoint: Path | None = None,
        *,
        masked: bool = True,
    ) -> None:
        self.study, self.federation, self.name, self.watch = study, federation, name, watch
        self.checkpoint = checkpoint
        self.masked = masked and study.privacy.trust == "secure-sum"
        self.synthetic: Codes | None = None
        self.plan = priced_plan(study)
        self.rounds: list[Round] = []
        self.private = True
        self.attendance = Attendance(study.rounds.quorum)

    def conduct(self) -> Outcome:
        """Every step of the plan, then the generator and its figures.

        Raises:
            QuorumLost: as soon as a step has too few usable answers.
        """
        began = time.monotonic()
        if len(self.federation.sites()) < self.study.rounds.quorum:
            raise QuorumLost("start", self.study.rounds.quorum, {})
        family = get_family(self.study.family.name)
        trained, judging = self._resume()
        if judging is None:
            trained = self._phase(family, trained)
        with listening(lambda what, done, of: self.watch(Progress(what, done, of, {}))):
            artefact = family.export(self.study, trained)
        figures, judged = None, None
        federated_too, evaluation = self.study.evaluation.federated, evaluation_of(self.study)
        synthetic: Codes | Images
        if self.study.image:
            painter, rng = open_image_sampler(artefact.sampler, artefact.files, self.study), np.random.default_rng()
            synthetic = painter.of(np.repeat(painter.made, SHOWN_IMAGES), rng)
            if federated_too:
                learned = painter.sample(federated_images.JUDGED_IMAGES, rng)
                judged = self._judge(evaluation, judging or federated_images.start(self.study, learned), trained)
                figures = federated_images.figures(self.study, judged)
        else:
            if self.synthetic is None:
                sampler = open_sampler(artefact.sampler, artefact.files, self.study)
                self.synthetic = sampler.sample(JUDGED_ROWS, np.random.default_rng())
            synthetic = self.synthetic
            if federated_too:
                judged = self._judge(evaluation, judging or federated.start(self.study, synthetic), trained)
                figures = federated.figures(self.study, judged, synthetic)
        return Outcome(
            self.name,
            self.study,
            self.plan,
            artefact,
            synthetic,
            figures,
            judged,
            self.private,
            self.rounds,
            time.monotonic() - began,
        )

    def _judge(
        self, evaluation: federated.Evaluation | federated_images.Evaluation, start: State, trained: State
    ) -> State:
        """What is judged was drawn at random: it is kept before it is sent, so that a run that comes back sends the same."""
        self._save(start, trained)
        return self._phase(evaluation, start, trained)

    def _phase(
        self,
        family: Family | federated.Evaluation | federated_images.Evaluation,
        state: State,
        trained: State | None = None,
    ) -> State:
        """Exchanges until the family needs no more. ``trained``: the generator's state, while it is being judged."""
        while (step := family.next_step(self.study, state)) is not None:
            priced = self.plan.find(step.name)
            if priced is None:
                raise MedsynxError("step-not-planned", f"the plan has no step {step.name!r}")
            state = family.combine(self.study, priced, state, self._exchange(priced, state))
            self._save(state, trained)
            self._journal(step.name).clear()
        return state

    def _journal(self, step: str) -> Journal:
        folder = self.checkpoint and self.checkpoint.with_name("exchanges")
        return Journal(folder, f"{self.study.digest} {self.name} {step}")

    def _save(self, state: State, trained: State | None) -> None:
        if self.checkpoint is None:
            return
        facts: dict[str, Any] = {"study": self.study.digest, "name": self.name, "private": self.private}
        facts["rounds"] = rounds_json(self.rounds)
        facts["trained"] = trained.facts if trained else None
        arrays: Arrays = {f"trained.{n}": a for n, a in trained.arrays.items()} if trained else {}
        if self.synthetic is not None:
            arrays["synthetic"] = self.synthetic
        checkpoint.save(self.checkpoint, checkpoint.Checkpoint(state, facts, arrays))

    def _resume(self) -> tuple[State, State | None]:
        """The generator's state so far and, when it was being judged, the evaluation's."""
        held = self.checkpoint and checkpoint.load(self.checkpoint, self.study.digest, self.name)
        if not held:
            return State(), None
        self.rounds, self.private = [Round(**r) for r in held.facts["rounds"]], held.facts["private"]
        if held.facts["trained"] is None:
            return held.state, None
        self.synthetic = held.arrays.get("synthetic")  # images are drawn anew: their classifier is in the state
        arrays = {n.removeprefix("trained."): a for n, a in held.arrays.items() if n.startswith("trained.")}
        return State(arrays, held.facts["trained"]), held.state

    def _exchange(self, priced: PricedStep, state: State) -> Total:
        step, study, began = priced.step, self.study, time.monotonic()
        asked, missing = self._call()
        self._report(step.name, missing | dict.fromkeys(asked, "asked"))
        request = Request(self.name, study.digest, step.name, State(weights_of(state.arrays), state.facts))
        if self.masked and step.cargo == "secure-sum":
            journal = self._journal(step.name)
            return self._secure_sum(SecureSum(self.federation, study, priced, request, journal), asked, missing)
        if len(asked) < study.rounds.quorum:  # it could not count, and a site that is asked pays
            self._record(step.name, began, [], missing, 0)
            raise QuorumLost(step.name, study.rounds.quorum, missing)
        good: dict[str, Reply] = {}
        for answer in self.federation.ask(request, asked, study.rounds.deadline_seconds):
            reason = _reason(answer, request, priced, study)
            if reason is None and answer.reply is not None:
                good[answer.site] = answer.reply
            else:
                missing[answer.site] = reason or "late"
        sent = max((sum(a.nbytes for a in r.arrays.values()) for r in good.values()), default=0)
        self.attendance.note(asked, missing)
        self._record(step.name, began, sorted(good), missing, sent)
        if len(good) < study.rounds.quorum:
            raise QuorumLost(step.name, study.rounds.quorum, missing)
        self.private &= all(r.private for r in good.values())
        total = combine(good, priced, study)
        return total if self.private else replace(total, noise_std=0.0)

    def _call(self) -> tuple[list[str], dict[str, str]]:
        """Whom to ask, and why not the others. A quorum that is not online is waited for, no longer than one deadline."""
        until = time.monotonic() + self.study.rounds.deadline_seconds
        while len(online := self.federation.sites()) < self.study.rounds.quorum and time.monotonic() < until:
            time.sleep(0.5)
        return self.attendance.call(online)

    def _secure_sum(self, exchange: SecureSum, asked: list[str], away: dict[str, str]) -> Total:
        """The total of masked vectors."""
        began, step = time.monotonic(), exchange.priced.step.name
        try:
            exchange.conduct(asked)
        except TooFew as few:
            missing = _not_asked(exchange, asked, away) | exchange.missing | exchange.silent
            self._record(step, began, [], missing, exchange.bytes_per_site)
            raise QuorumLost(step, few.needed, missing) from None
        assert exchange.total is not None
        missing = _not_asked(exchange, asked, away) | exchange.missing
        self.attendance.note(exchange.asked, missing | exchange.silent)
        self._record(step, began, exchange.answered, missing, exchange.bytes_per_site)
        self.private &= exchange.private
        total = total_of(exchange.total, len(exchange.answered), exchange.priced, self.study)
        return total if self.private else replace(total, noise_std=0.0)

    def _record(self, step: str, began: float, answered: list[str], missing: dict[str, str], sent: int) -> None:
        self.rounds.append(Round(step, round(time.monotonic() - began, 2), answered, missing, sent))
        self._report(step, missing | dict.fromkeys(answered, "answered"), done=True)

    def _report(self, step: str, sites: dict[str, str], *, done: bool = False) -> None:
        names = [s.step.name for s in self.plan.steps]
        self.watch(Progress(step, names.index(step) + int(done), len(names), sites))


def _reason(answer: Answer, request: Request, priced: PricedStep, study: Study) -> str | None:
    """Why an answer does not count; None when it does."""
    if answer.reply is None:
        return answer.reason or "late"
    return answer.reply.refusal or fault(answer.reply, request, priced, study)


def _not_asked(exchange: SecureSum, online: list[str], away: dict[str, str]) -> dict[str, str]:
    """Why the other sites are not in a sum. One that came after it was begun was away then; one that left it since is told by the sum itself."""
    others = dict.fromkeys(online, "offline") | away
    return {site: why for site, why in others.items() if site not in exchange.asked}


def rounds_json(rounds: list[Round]) -> list[dict[str, Any]]:
    """Rounds as plain JSON for a bundle or report."""
    return [asdict(r) for r in rounds]
