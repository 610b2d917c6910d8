"""The whole programme of a study: its family's steps, then the evaluation's, priced together. What a privacy officer approves."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from evaluation import federated, federated_images
from evaluation.federated import HOLDOUT, REFERENCE
from medsynx.generators import get_family
from medsynx.plan import Plan, Step
from medsynx.privacy import calibrate, share_std
from medsynx.study import Study


def evaluation_of(study: Study) -> federated.Evaluation | federated_images.Evaluation:
    """The private evaluation of a study's kind."""
    return federated_images.Evaluation() if study.image else federated.Evaluation()


def is_evaluation(step: Step) -> bool:
    """Whether a step belongs to the evaluation."""
    return step.name in (REFERENCE, HOLDOUT)


def full_plan(study: Study) -> tuple[Step, ...]:
    """Every step of a run, in order.

    With a federated evaluation the family trains on training patients and leaves ``reference_share`` of their budget to the
    reference step; hold-out patients spend theirs on the hold-out step. Without one, every patient trains.
    """
    steps = get_family(study.family.name).plan(study)
    if not study.evaluation.federated:
        return tuple(replace(s, part="all") for s in steps)
    judged = evaluation_of(study).plan(study)
    left = 1 - sum(s.share for s in judged if s.part == "train")
    return tuple(replace(s, share=s.share * left) for s in steps) + judged


@lru_cache(maxsize=64)
def _priced(digest: str, study_json: str) -> Plan:
    study = Study.model_validate_json(study_json)
    plan = calibrate(study.privacy, full_plan(study))
    for step in plan.steps:
        if step.step.cargo == "secure-sum":
            share_std(step, study.privacy, study.rounds.quorum)
    return plan


def priced_plan(study: Study) -> Plan:
    """The calibrated plan; both sides compute it from the manifest and must agree.

    Raises:
        MedsynxError: ``budget-impossible``.
    """
    return _priced(study.digest, study.model_dump_json())
