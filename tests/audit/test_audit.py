"""Canaries: with one patient more, the best test on everything a run gives away stays below the claim - and finds each fault planted here.

The attacker knows all other patients, the canary, the plan and every earlier total. A run's score is the exact likelihood ratio.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from evaluation.programme import priced_plan
from medsynx import codec
from medsynx.generators import dp_gan_sum, dpsgd, get_family, image_dp_gan_sum
from medsynx.generators.base import ImagePatients, Patients, State, Total
from medsynx.generators.dp_gan import Parameters
from medsynx.generators.dp_gan_networks import make_critic, tensors
from medsynx.generators.dpsgd import SecretNoise, SecretNoiseOptimizer
from medsynx.generators.gan_coordinator import under
from medsynx.generators.gan_training import CriticTrainer
from medsynx.generators.image_dp_gan_networks import make_critic as make_image_critic
from medsynx.privacy import dpsgd_event, epsilon
from medsynx.study import Study, parse_study
from medsynx.wire import Request
from site_agent import door as door_module
from site_agent.door import Permit
from site_agent.ingest import LocalTable, prepare
from site_agent.service import SiteService
from tests.audit.estimate import epsilon_lower_bound
from tests.conftest import RAW_IMAGE_STUDY, RAW_STUDY, small_table
from tests.helpers import integers, make_site

pytestmark = pytest.mark.filterwarnings("ignore")
RUNS = 400
DELTA = 1e-5
RAW = {
    **RAW_STUDY,
    "columns": {"patient": {"type": "patient-id"}, **RAW_STUDY["columns"]},
    "privacy": {"epsilon": 1.0, "delta": DELTA, "trust": "local", "max_records_per_patient": 1},
}
STUDY = parse_study(RAW)


def test_the_estimate_itself():
    """On Gaussians it stays below the truth, comes near it, and sees certainty."""
    rng = np.random.default_rng(0)
    truth = 2.7  # of unit shift at delta 0.01, noise 1: 1.9 to 2.7 by threshold
    bound = epsilon_lower_bound(rng.normal(0, 1, 4000), rng.normal(1, 1, 4000), 0.01)
    assert 0.8 < bound < truth
    assert epsilon_lower_bound(rng.normal(0, 1, 1000), rng.normal(0, 1, 1000), DELTA) < 0.2
    assert epsilon_lower_bound(np.zeros(400), np.ones(400), DELTA) > 3


# -- secure sums: every step of the family, through the code that encodes, bounds and noises at a site


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Neighbours. The canary is alone in its cells, has 40 records, and numbers far outside the dictionary's bounds."""
    without = small_table(120, 5)
    without = without[(without["sex"] == "F") & (without["grade"] != "3")].reset_index(drop=True)
    without.insert(0, "patient", [f"p{i}" for i in range(len(without))])
    canary = {"patient": "canary", "age": "1e9", "sex": "M", "grade": "3", "marker": "-1e9", "ill": "yes"}
    return without, pd.concat([without, pd.DataFrame([canary] * 40)], ignore_index=True)


def everyone(frame: pd.DataFrame, study: Study = STUDY) -> Patients:
    """All patients of a table, whatever part they belong to: the attacker does not need the split."""
    return prepare(frame, study, bytes(32)).parts["all"]


def sum_score(door: door_module.Door, worlds: tuple[Patients, Patients], truth: int) -> float:
    """Log likelihood ratio of a whole adaptive run in one of the two worlds."""
    family, plan = get_family("marginals"), priced_plan(STUDY)
    state, score = State(), 0.0
    while step := family.next_step(STUDY, state):
        priced = plan.find(step.name)
        assert priced is not None
        sums = [family.contribute(STUDY, priced, state, w, {}) for w in worlds]
        seen = integers(
            door._sum(Permit(STUDY, "table", "run", priced, private=True, masked=False, split=""), sums[truth], None)
        )
        expected = [np.clip(s.arrays["sum"], -priced.step.limit, priced.step.limit) for s in sums]
        apart = [((seen - e) ** 2).sum() for e in expected]
        score += (apart[0] - apart[1]) / (2 * priced.noise_std**2)
        state = family.combine(STUDY, priced, state, Total({"sum": seen}, priced.noise_std, 1))
    return score


def audit_sums(tmp_path) -> float:
    without, with_ = tables()
    door = door_module.Door(make_site(tmp_path / "site", STUDY, without))
    worlds = everyone(without), everyone(with_)
    scores = [np.array([sum_score(door, worlds, truth) for _ in range(RUNS)]) for truth in (0, 1)]
    return epsilon_lower_bound(scores[0], scores[1], DELTA)


def test_sums_stay_below_their_claim(tmp_path):
    assert audit_sums(tmp_path) <= STUDY.privacy.epsilon


def noise_divided_by_n(monkeypatch):
    real = door_module.discrete_gaussian
    monkeypatch.setattr(door_module, "discrete_gaussian", lambda std, size: real(std / 50, size))


def seeded_noise(monkeypatch):
    monkeypatch.setattr(
        door_module,
        "discrete_gaussian",
        lambda std, size: np.random.default_rng(1).normal(0, std, size).round().astype(np.int64),
    )


def bounds_from_data(monkeypatch):
    """Numbers are scaled by the least and the largest of the table before they are binned."""
    real = codec.encode

    def encode(frame, study, *, strict=False):
        for name, (low, high) in {"age": (18, 90), "marker": (0, 10)}.items():
            values = pd.to_numeric(frame[name], errors="coerce")
            scaled = low + (high - low) * (values - values.min()) / (values.max() - values.min())
            frame = frame.assign(**{name: scaled.astype(str).replace("nan", "")})
        return real(frame, study, strict=strict)

    monkeypatch.setattr(codec, "encode", encode)


def no_cap_on_records(monkeypatch):
    monkeypatch.setattr("site_agent.ingest._cap", lambda names, rows, cap: (list(range(len(rows))), 0))


@pytest.mark.parametrize("fault", [noise_divided_by_n, seeded_noise, bounds_from_data, no_cap_on_records])
def test_a_fault_in_the_sums_is_found(tmp_path, monkeypatch, fault):
    fault(monkeypatch)
    assert audit_sums(tmp_path) > STUDY.privacy.epsilon


# -- sums of gradients: a Poisson sample of patients, noised at the door

SUMMED = parse_study(
    {
        **RAW,
        "family": {
            "name": "dp-gan",
            "parameters": {
                "gradients": "summed",
                "rounds": 10,
                "critic_hidden": 4,
                "hidden": 8,
                "sample_rate": 0.1,
                "clip_norm": 0.1,
            },
        },
        "privacy": {**RAW["privacy"], "delta": 1e-3},
        "evaluation": {"federated": False},
    }
)
PICTURES = parse_study(
    {
        **RAW_IMAGE_STUDY,
        "image": {"shape": [8, 8, 1], "intensity": [0, 1], "classes": ["a"]},
        "family": {
            "name": "image-dp-gan",
            "parameters": {
                "gradients": "summed",
                "rounds": 10,
                "critic_width": 2,
                "sample_rate": 0.1,
                "clip_norm": 0.1,
            },
        },
        "privacy": SUMMED.privacy.model_dump(mode="json"),
    }
)


def aimed(study: Study) -> tuple[State, tuple[Patients, Patients], np.ndarray]:
    """A critic in a state, the worlds without and with the canary, the only patient there may be, and its integer gradient."""
    nobody, one = np.zeros(0, np.int64), np.zeros(1, np.int64)
    if study is SUMMED:
        codes = np.zeros((1, len(codec.sizes(SUMMED))), np.int64)
        state = State(dp_gan_sum.start(SUMMED, Parameters.model_validate(SUMMED.family.parameters), {}))
        critic = dp_gan_sum.critic_of(state.arrays, sum(codec.sizes(SUMMED)), 4)
        row = codec.to_onehot(codes, SUMMED).astype(float)
        mean = dp_gan_sum.clipped_sum(critic, row, 0.1, real=True).astype(float)
        return state, (Patients(codes[:0], nobody), Patients(codes, one)), mean
    image, label = np.ones((1, 1, 8, 8), np.float32), np.zeros((1, 1), np.int64)
    state = State(image_dp_gan_sum.begin(PICTURES, {}))
    network = make_image_critic(PICTURES)
    network.load_state_dict(tensors(under(state.arrays, dp_gan_sum.CRITIC)))
    picture = torch.cat([torch.ones(1, 64), torch.ones(1, 1)], 1)
    mean = image_dp_gan_sum.clipped_sum(network, picture, 0.1, real=True).astype(float)
    return state, (ImagePatients(label[:0], nobody, image[:0]), ImagePatients(label, one, image)), mean


def summed_score(door: door_module.Door, study: Study, patients: Patients, mean: np.ndarray, state: State) -> float:
    """Log likelihood ratio of the rounds; ``mean`` is the canary's integer gradient."""
    family, score = get_family(study.family.name), 0.0
    for priced in priced_plan(study).steps:
        if priced.step.sampling is None:
            continue
        raw = family.contribute(study, priced, state, patients, {})
        seen = integers(
            door._sum(Permit(study, "table", "run", priced, private=True, masked=False, split=""), raw, None)
        )
        likely = float(seen @ mean - mean @ mean / 2) / priced.noise_std**2
        rate = priced.step.sampling.rate
        score += float(np.logaddexp(np.log1p(-rate), np.log(rate) + likely))
    return score


def audit_summed_gradients(tmp_path, study: Study = SUMMED, runs: int = 400) -> float:
    """The critic is held still and aimed at the canary: what the coordinator learns meanwhile is post-processing."""
    door = door_module.Door(make_site(tmp_path / "site", SUMMED, tables()[0]))
    state, worlds, mean = aimed(study)
    scores = [np.array([summed_score(door, study, w, mean, state) for _ in range(runs)]) for w in worlds]
    return epsilon_lower_bound(scores[0], scores[1], study.privacy.delta)


@pytest.mark.parametrize(("study", "runs"), [(SUMMED, 400), (PICTURES, 80)], ids=["table", "images"])
def test_sums_of_gradients_stay_below_their_claim(tmp_path, study, runs):
    assert 0.9 * dp_gan_sum.NORM < np.linalg.norm(aimed(study)[2]) <= dp_gan_sum.NORM
    assert audit_summed_gradients(tmp_path, study, runs) <= study.privacy.epsilon


def test_gradients_of_images_that_are_not_clipped_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(
        image_dp_gan_sum, "_whole", lambda gradient, clip_norm: (gradient * 100 * dp_gan_sum.NORM).astype(np.int64)
    )
    # of fewer runs too few have the canary in a batch: of 150, one audit in twenty found nothing
    assert audit_summed_gradients(tmp_path, PICTURES, 200) > PICTURES.privacy.epsilon


def everyone_joins(monkeypatch):
    monkeypatch.setattr(
        "medsynx.generators.dpsgd.poisson_sample", lambda secret, first, count, rate: first, raising=True
    )


def noise_of_gradients_divided_by_n(monkeypatch):
    real = door_module.discrete_gaussian
    monkeypatch.setattr(door_module, "discrete_gaussian", lambda std, size: real(std / 50, size))


@pytest.mark.parametrize("fault", [everyone_joins, noise_of_gradients_divided_by_n])
def test_a_fault_in_the_sums_of_gradients_is_found(tmp_path, monkeypatch, fault):
    fault(monkeypatch)
    assert audit_summed_gradients(tmp_path) > SUMMED.privacy.epsilon


# -- asking again: a generator that goes back to the rows for each sample gives fresh noise each time, and the mean of it tells


LOOSER = parse_study(  # less noise, and all of the budget in one step: fewer questions show the fault
    {
        **RAW,
        "columns": {name: RAW["columns"][name] for name in ("patient", "age", "sex", "ill")},
        "privacy": {**RAW["privacy"], "delta": 1e-3},
        "evaluation": {"federated": False},
    }
)


def audit_asking_again(tmp_path, monkeypatch, times: int = 250, runs: int = 80) -> float:
    """The first step, asked for under many run names, through the whole door; the attacker keeps what it is given."""
    for name in ("released", "refused"):  # thousands of lines on the disk, for nobody
        monkeypatch.setattr(f"site_agent.audit.Audit.{name}", lambda *_: None)
    for name in ("find", "keep"):
        monkeypatch.setattr(f"site_agent.answers.Answers.{name}", lambda *_: None)
    monkeypatch.setattr(door_module, "split_of", lambda *_: "split")
    monkeypatch.setattr(door_module, "check_traffic", lambda *_: None)
    rng = np.random.default_rng()  # a quicker draw of the noise, which is audited above
    monkeypatch.setattr(
        door_module, "discrete_gaussian", lambda std, size: rng.normal(0, std, size).round().astype(np.int64)
    )
    family, priced = get_family("marginals"), priced_plan(LOOSER).steps[0]
    frames = tables()
    expected = [family.contribute(LOOSER, priced, State(), everyone(f, LOOSER), {}).arrays["sum"] for f in frames]
    scores = []
    for truth, frame in enumerate(frames):
        got = []
        for n in range(runs):
            site = make_site(tmp_path / f"{truth}-{n}", LOOSER, frame)
            service, total = SiteService(site), 0.0
            policy, approval = site.policy(), site.approval(LOOSER.digest)
            monkeypatch.setattr(site, "policy", lambda policy=policy: policy)  # parsed once
            monkeypatch.setattr(site, "approval", lambda _, approval=approval: approval)
            service._table = ((LOOSER.digest, "table", "split"), _all_as_training(frame))
            for k in range(times):
                reply = service.answer(Request(f"run-{k}", LOOSER.digest, priced.step.name, State()))
                if reply.refusal is None:
                    seen = integers(reply.arrays)
                    apart = [((seen - e) ** 2).sum() for e in expected]
                    total += (apart[0] - apart[1]) / (2 * priced.noise_std**2)
            got.append(total)
        scores.append(np.array(got))
    return epsilon_lower_bound(scores[0], scores[1], LOOSER.privacy.delta)


def _all_as_training(frame: pd.DataFrame) -> LocalTable:
    table = prepare(frame, LOOSER, bytes(32))
    return LocalTable(dict.fromkeys(("train", "holdout", "all"), table.parts["all"]), table.report, 0)


def test_asking_again_gives_nothing_more(tmp_path, monkeypatch):
    assert audit_asking_again(tmp_path, monkeypatch, times=5) <= LOOSER.privacy.epsilon


def test_a_refit_per_sample_is_found(tmp_path, monkeypatch):
    """The ledger forgets: each question is answered from the rows anew."""
    monkeypatch.setattr("site_agent.ledger.Ledger.reserve", lambda *_: None)
    monkeypatch.setattr("site_agent.ledger.Ledger.settle", lambda *_: None)
    assert audit_asking_again(tmp_path, monkeypatch) > LOOSER.privacy.epsilon


# -- DP-SGD: the noised gradients of a critic, of which everything the generator learns is post-processing

SETTINGS = Parameters(clip_norm=0.05, batch=16, hidden=8, latent=4, sample_rate=0.1)
STEPS, NOISE, WIDTH = 6, 0.8, 12
LOOSE = 0.01  # at a small delta, hundreds of runs cannot refute the claim of so few steps
CLAIM = epsilon([dpsgd_event(NOISE, SETTINGS.sample_rate, STEPS)], LOOSE)


def training(truth: int) -> tuple[float, list[torch.Tensor]]:
    """One training, the canary being the only patient there may be: the log likelihood ratio of its noised gradients, and
    the gradients."""
    trainer = CriticTrainer(make_critic(WIDTH, SETTINGS.critic_hidden), SETTINGS, NOISE)
    row, fake = torch.eye(WIDTH)[:1], torch.eye(WIDTH)[1:5]
    seen: list[torch.Tensor] = []
    trainer.optimizer.attach_step_hook(
        lambda o: seen.append(torch.cat([q.grad.flatten() for q in trainer.parameters]) * SETTINGS.batch)
    )
    bound, rate, score = SETTINGS.clip_norm, SETTINGS.sample_rate, 0.0
    for _ in range(STEPS):
        trainer.critic.disable_hooks()
        loss = torch.nn.functional.softplus(-trainer.critic(row)).mean()
        canary = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trainer.parameters)])
        trainer.step(row[trainer.sample(np.zeros(truth, np.int64), np.ones(truth, np.int64), rate)], fake)
        along = float(seen[-1] @ (canary / canary.norm()))
        likely = (along * bound - bound**2 / 2) / (NOISE * bound) ** 2
        score += float(np.logaddexp(np.log1p(-rate), np.log(rate) + likely))
    return score, seen


def shard_training(truth: int) -> tuple[float, list[torch.Tensor]]:
    """The same of a network under the loop that trains Synthcity's."""
    bound, rate, score = SETTINGS.clip_norm, SETTINGS.sample_rate, 0.0
    trainer = dpsgd.PrivateTrainer(
        torch.nn.Linear(WIDTH, 1), noise_multiplier=NOISE, clip_norm=bound, batch=SETTINGS.batch, learning_rate=1e-3
    )
    patients = Patients(np.zeros((truth, 1), np.int64), np.arange(truth))
    row, seen = torch.eye(WIDTH)[:1], []

    def loss(network, x):
        return torch.nn.functional.softplus(-network(x)).squeeze(1)

    trainer.optimizer.attach_step_hook(
        lambda o: seen.append(torch.cat([q.grad.flatten() for q in trainer.parameters]) * SETTINGS.batch)
    )
    for _ in range(STEPS):
        trainer.network.disable_hooks()
        gradient = torch.autograd.grad(loss(trainer.network, row).mean(), trainer.parameters)
        canary = torch.cat([g.flatten() for g in gradient])
        trainer.step(row[dpsgd.PatientSampler(patients).sample(rate)], loss)
        along = float(seen[-1] @ (canary / canary.norm()))
        likely = (along * bound - bound**2 / 2) / (NOISE * bound) ** 2
        score += float(np.logaddexp(np.log1p(-rate), np.log(rate) + likely))
    return score, seen


def gradient_score(training: Any, truth: int, earlier: list[torch.Tensor]) -> float:
    """The likelihood ratio; but where the noise is what it was in an ``earlier`` training without patients, what differs decides."""
    score, seen = training(truth)
    same = [float((s - e).norm() / e.norm()) for s, e in zip(seen, earlier, strict=True)]
    return score if max(same) > 0.5 else 1e3 * max(same)


def audit_gradients(training: Any = training, runs: int = 400) -> float:
    _, earlier = training(0)
    scores = [np.array([gradient_score(training, truth, earlier) for _ in range(runs)]) for truth in (0, 1)]
    return epsilon_lower_bound(scores[0], scores[1], LOOSE)


@pytest.mark.parametrize("training", [training, shard_training])
def test_gradients_stay_below_their_claim(training):
    assert audit_gradients(training) <= CLAIM


def gradient_noise_divided_by_n(monkeypatch):
    real = SecretNoise.normal
    monkeypatch.setattr(SecretNoise, "normal", lambda self, shape: real(self, shape) / 50)


def gradient_noise_seeded(monkeypatch):
    def normal(self, shape):
        if not hasattr(self, "_seeded"):
            self._seeded = torch.Generator().manual_seed(1)
        return torch.randn(shape, generator=self._seeded)

    monkeypatch.setattr(SecretNoise, "normal", normal)


def no_clipping(monkeypatch):
    def accumulate(self):
        for q in self.params:
            q.summed_grad = self._get_flat_grad_sample(q).sum(0)

    monkeypatch.setattr(SecretNoiseOptimizer, "clip_and_accumulate", accumulate)


def batches_that_are_no_poisson_samples(monkeypatch):
    monkeypatch.setattr(CriticTrainer, "sample", lambda self, first, count, rate: first)
    monkeypatch.setattr(dpsgd.PatientSampler, "sample", lambda self, rate: self.order)


@pytest.mark.parametrize(
    "fault",
    [gradient_noise_divided_by_n, gradient_noise_seeded, no_clipping, batches_that_are_no_poisson_samples],
)
def test_a_fault_in_the_gradients_is_found(monkeypatch, fault):
    fault(monkeypatch)
    assert audit_gradients() > CLAIM


@pytest.mark.parametrize("fault", [no_clipping, batches_that_are_no_poisson_samples])
def test_a_fault_in_the_gradients_of_a_shard_is_found(monkeypatch, fault):
    """Its noise is the critics' own, audited above."""
    fault(monkeypatch)
    assert audit_gradients(shard_training) > CLAIM
