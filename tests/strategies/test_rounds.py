"""Rounds tell the truth: quorum, who is missing and why, malformed answers left out, totals independent of order."""

import numpy as np
import pytest

from evaluation.programme import priced_plan
from medsynx.generators.base import State
from medsynx.secure_sum.ring import RING
from medsynx.study import parse_study
from medsynx.wire import Reply, Request
from site_agent.service import SiteService
from strategies.aggregate import combine, usable
from strategies.in_process import InProcessFederation
from strategies.rounds import QuorumLost, Run
from tests.conftest import RAW_STUDY, small_table
from tests.helpers import integers, make_site, refuse, zero_reply


def handlers(tmp_path, study, count=3, **how):
    return {
        f"s{k}": SiteService(make_site(tmp_path / f"s{k}", study, small_table(300, k), name=f"s{k}", **how)).answer
        for k in range(count)
    }


def test_a_run_says_who_took_part_and_what_it_cost(tmp_path, study):
    seen = []
    outcome = Run(study, InProcessFederation(handlers(tmp_path, study)), "r1", seen.append).conduct()
    assert outcome.sites == ["s0", "s1", "s2"] and outcome.private
    assert [r.step for r in outcome.rounds] == ["tables", "cliques", "evaluate: reference", "evaluate: hold-out"]
    assert outcome.bytes_per_site == sum(5 * s.step.size for s in outcome.plan.steps) == outcome.plan.bytes_per_site
    assert set(outcome.figures) == {"tvd1", "tvd2", "tstr_auc", "trtr_auc"}
    assert seen[0].sites == dict.fromkeys(["s0", "s1", "s2"], "asked") and seen[-1].round == seen[-1].rounds == 4


def test_a_refusing_or_broken_site_is_named_and_the_quorum_carries_on(tmp_path, study):
    three = handlers(tmp_path, study)
    three |= {"refuses": refuse("budget-exceeded"), "raises": lambda r: 1 / 0, "short": lambda r: zero_reply(3)}
    outcome = Run(study, InProcessFederation(three), "r1").conduct()
    assert outcome.rounds[0].missing == {
        "refuses": "budget-exceeded",
        "raises": "site-failed",
        "short": "reply-invalid",
    }
    assert outcome.rounds[0].answered == ["s0", "s1", "s2"]


def test_too_few_answers_fail_the_run_by_name(tmp_path, study):
    sites = {**handlers(tmp_path, study, count=1), "x": refuse("study-not-approved")}
    with pytest.raises(QuorumLost) as caught:
        Run(study, InProcessFederation(sites), "r1").conduct()
    assert caught.value.missing == {"x": "study-not-approved"} and "x (study-not-approved)" in caught.value.message
    with pytest.raises(QuorumLost):
        Run(study, InProcessFederation(handlers(tmp_path / "one", study, count=1)), "r1").conduct()


def test_one_site_without_noise_makes_the_whole_run_not_private(tmp_path, study):
    sites = {
        **handlers(tmp_path, study, count=2),
        **{"loud": handlers(tmp_path / "l", study, count=1, noise=False)["s0"]},
    }
    assert Run(study, InProcessFederation(sites), "r1").conduct().private is False


@pytest.mark.parametrize("workers", [1, 3])
def test_deadlines_hold_in_process_too(study, workers):
    import time

    def slow(request: Request) -> Reply:
        time.sleep(0.6)
        return zero_reply(3)

    federation = InProcessFederation({"slow": slow, "quick": lambda r: zero_reply(3)}, workers)
    began = time.monotonic()
    answers = federation.ask(Request("r", study.digest, "tables", State()), ["slow", "quick", "ghost"], 0.3)
    assert [(a.site, a.reason) for a in answers] == [("ghost", "offline"), ("quick", None), ("slow", "late")]
    assert time.monotonic() - began < 5


def test_totals_do_not_depend_on_order_and_noise_adds_up(study):
    priced = priced_plan(study).find("tables")
    rng = np.random.default_rng(1)
    replies = {
        f"s{k}": Reply({"sum": RING.pack(RING.encode(rng.integers(-(2**36), 2**36, priced.step.size)))})
        for k in range(4)
    }
    a, b = combine(replies, priced, study), combine(dict(reversed(replies.items())), priced, study)
    assert (a.arrays["sum"] == b.arrays["sum"]).all()
    exact = sum(integers(r.arrays) for r in replies.values())
    assert a.arrays["sum"].dtype == np.int64 and (a.arrays["sum"] == exact).all()
    assert a.noise_std == pytest.approx(priced.noise_std * 2), "local mode: every site adds the full noise"
    secure = parse_study(
        {**RAW_STUDY, "privacy": {**RAW_STUDY["privacy"], "trust": "secure-sum"}, "rounds": {"quorum": 4}}
    )
    assert combine(replies, priced, secure).noise_std == pytest.approx(priced.noise_std)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"sum": np.zeros((5, 5), np.uint8)},
        {"other": np.zeros(1, np.int32)},
        {"sum": "right size, wrong type"},
    ],
)
def test_malformed_sums_are_not_used(study, arrays):
    priced = priced_plan(study).find("tables")
    if arrays.get("sum") is not None and isinstance(arrays["sum"], str):
        arrays = {"sum": np.zeros((priced.step.size, 5), np.float64)}
    assert not usable(Reply(arrays), priced, State())


def test_malformed_models_are_not_used(raw_study):
    raw_study["family"] = {"name": "dp-gan", "parameters": {"rounds": 1, "critic_steps": 1}}
    study = parse_study(raw_study)
    from medsynx.generators.dp_gan import initial_weights

    priced, good = priced_plan(study).find("round 1"), initial_weights(study)
    assert usable(Reply(good), priced, State()) and usable(Reply(good), priced, State(good))
    nan = {**good, "in.bias": np.full_like(good["in.bias"], np.nan)}
    turned = {**good, "mid.weight": good["mid.weight"].reshape(1, -1)}
    assert not usable(Reply(nan), priced, State(good)) and not usable(Reply(turned), priced, State(good))
    mean = combine({"a": Reply(good), "b": Reply({n: w * 3 for n, w in good.items()})}, priced, study)
    assert np.allclose(mean.arrays["mid.weight"], good["mid.weight"] * 2, atol=1e-6)
