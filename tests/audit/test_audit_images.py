"""Canaries of the image families: with a patient of twelve images more, the best test on the noised sums stays below the claim.

The attacker knows every other patient, the canary, the public features and earlier totals. A run's score is the exact likelihood ratio.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from evaluation.programme import priced_plan
from medsynx.generators import get_family
from medsynx.generators.base import ImagePatients, State, Total
from medsynx.generators.image_sum import ImageSum
from medsynx.generators.random_features import RandomFeatures
from medsynx.study import parse_study
from site_agent import door as door_module
from site_agent.door import Permit
from tests.audit.estimate import epsilon_lower_bound
from tests.conftest import RAW_IMAGE_STUDY, RAW_STUDY, small_table, stripes
from tests.helpers import integers, make_site

RUNS = 400
CANARY = 12  #: images, all alike and unlike any other
OTHERS = 60
STUDIES = {
    family: parse_study(
        {
            **RAW_IMAGE_STUDY,
            "image": {**RAW_IMAGE_STUDY["image"], "shape": [8, 8, 1]},
            "family": {"name": family, "parameters": parameters},
            "privacy": {
                "epsilon": 1.0,
                "delta": 1e-3,  # at a smaller one, hundreds of runs show less
                "trust": "local",
                "max_records_per_patient": CANARY,
                "records": "averaged",
            },
        }
    )
    for family, parameters in {"mean-embedding": {"features": 16}, "moments": {"frequencies": 3}}.items()
}


@pytest.fixture(autouse=True)
def quick_noise(monkeypatch):
    """The same noise drawn in less time; the door's own is audited with the tables' sums."""
    rng = np.random.default_rng()
    monkeypatch.setattr(
        door_module, "discrete_gaussian", lambda std, size: rng.normal(0, std, size).round().astype(np.int64)
    )


def neighbours() -> tuple[ImagePatients, ImagePatients]:
    """Patients of one image each, and the same with the canary."""
    pixels, label = stripes(OTHERS, 2, 8)
    images = np.concatenate([pixels / 255, np.ones((CANARY, 8, 8))]).astype(np.float32)[:, None]
    codes = np.concatenate([label, np.ones(CANARY, np.int64)])[:, None]
    patient = np.concatenate([np.arange(OTHERS), np.full(CANARY, OTHERS)])
    return ImagePatients(codes[:OTHERS], patient[:OTHERS], images[:OTHERS]), ImagePatients(codes, patient, images)


def audit(tmp_path, name: str) -> float:
    """The bound from runs through the code that adds up, bounds and noises at a site; a family's steps build on each other's noised totals."""
    study, family, worlds = STUDIES[name], get_family(name), neighbours()
    door = door_module.Door(
        make_site(tmp_path / "site", parse_study(RAW_STUDY), small_table(60, 1))
    )  # a sum asks its site for nothing
    plan, first = priced_plan(study), {}

    def once(truth: int) -> float:
        state, score = State(), 0.0
        while step := family.next_step(study, state):
            priced = plan.find(step.name)
            sums = first.get(step.name)
            if sums is None:
                sums = [family.contribute(study, priced, state, w, {}) for w in worlds]
                if not state.arrays:  # the first step's sums are the same in every run
                    first[step.name] = sums
            permit = Permit(study, "table", "run", priced, private=True, masked=False, split="")
            seen = integers(door._sum(permit, sums[truth], None))
            apart = [((seen - s.arrays["sum"]) ** 2).sum() for s in sums]
            score += float(apart[0] - apart[1]) / (2 * priced.noise_std**2)
            state = family.combine(study, priced, state, Total({"sum": seen}, priced.noise_std, 1))
        return score

    scores = [np.array([once(truth) for _ in range(RUNS)]) for truth in (0, 1)]
    return epsilon_lower_bound(scores[0], scores[1], study.privacy.delta)


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_sums_of_images_stay_below_their_claim(tmp_path, name):
    assert audit(tmp_path, name) <= STUDIES[name].privacy.epsilon


def images_summed(monkeypatch):
    """A patient's images are added up where they should be averaged."""
    monkeypatch.setattr(
        "medsynx.generators.image_sum.csr_matrix",
        lambda parts, shape: csr_matrix((np.ones_like(parts[0]), parts[1]), shape),
    )


def features_too_long(monkeypatch):
    """The features break their promise of norm 1."""
    real = RandomFeatures.__call__
    monkeypatch.setattr(RandomFeatures, "__call__", lambda self, images: 20 * real(self, images))


def no_check(monkeypatch):
    monkeypatch.setattr(ImageSum, "_bounded", lambda self, vectors, person: vectors)


@pytest.mark.parametrize("fault", [images_summed, features_too_long])
def test_without_the_check_of_norms_a_fault_in_the_sums_of_images_is_found(tmp_path, monkeypatch, fault):
    fault(monkeypatch)
    no_check(monkeypatch)
    assert audit(tmp_path, "mean-embedding") > STUDIES["mean-embedding"].privacy.epsilon


@pytest.mark.parametrize("fault", [images_summed, features_too_long])
def test_the_check_of_norms_makes_up_for_the_same_fault(tmp_path, monkeypatch, fault):
    fault(monkeypatch)
    assert audit(tmp_path, "mean-embedding") <= STUDIES["mean-embedding"].privacy.epsilon


def test_noise_of_images_divided_by_their_number_is_found(tmp_path, monkeypatch):
    real = door_module.discrete_gaussian
    monkeypatch.setattr(door_module, "discrete_gaussian", lambda std, size: real(std / 50, size))
    assert audit(tmp_path, "mean-embedding") > STUDIES["mean-embedding"].privacy.epsilon
