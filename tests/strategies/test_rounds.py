"""Rounds tell the truth: quorum, who is missing and why, malformed answers left out, totals independent of order."""

import numpy as np
import pytest

from evaluation.programme import priced_plan
from medsynx.generators.base import State
from medsynx.privacy import share_std
from medsynx.secure_sum.ring import RING
from medsynx.study import parse_study
from medsynx.wire import Reply, Request
from site_agent.ledger import Ledger
from site_agent.service import SiteService
from strategies.aggregate import TAIL, combine, fault
from strategies.attendance import Attendance
from strategies.federation import Answer
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
    three |= {"refuses": refuse("budget-exceeded"), "raises": lambda r: 1 / 0, "short": lambda r: zero_reply(3, r)}
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


def test_nobody_pays_for_a_step_that_cannot_reach_its_quorum(tmp_path, raw_study):
    """One of two has gone: what the other would answer could not count, so it is not asked."""
    study = parse_study(raw_study | {"rounds": {"quorum": 2, "deadline_seconds": 0.1}})
    federation = InProcessFederation(handlers(tmp_path, study, count=2))
    everybody, asked = federation.sites(), []
    answer, federation.ask = (
        federation.ask,
        lambda request, sites, seconds: asked.append(sites) or answer(request, sites, 60),
    )
    federation.sites = lambda: everybody if not asked else ["s0"]
    with pytest.raises(QuorumLost) as lost:
        Run(study, federation, "r1").conduct()
    assert asked == [["s0", "s1"]] and lost.value.missing == {"s1": "offline"}
    spent = [e["step"] for e in Ledger(tmp_path / "s0" / "ledger.sqlite").chain.entries() if e["kind"] == "reserve"]
    assert spent == ["tables"]


def test_one_site_without_noise_makes_the_whole_run_not_private(tmp_path, study):
    sites = {
        **handlers(tmp_path, study, count=2),
        **{"loud": handlers(tmp_path / "l", study, count=1, noise=False)["s0"]},
    }
    assert Run(study, InProcessFederation(sites), "r1").conduct().private is False


@pytest.mark.parametrize("workers", [1, 3])
def test_deadlines_hold_in_process_too(study, workers):
    import threading
    import time

    over = threading.Event()

    def slow(request: Request) -> Reply:
        over.wait(4 if workers == 1 else 60)
        return zero_reply(3)

    federation = InProcessFederation({"slow": slow, "quick": lambda r: zero_reply(3)}, workers)
    began = time.monotonic()
    answers = federation.ask(Request("r", study.digest, "tables", State()), ["slow", "quick", "ghost"], 3)
    over.set()
    assert [(a.site, a.reason) for a in answers] == [("ghost", "offline"), ("quick", None), ("slow", "late")]
    assert time.monotonic() - began < 30


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


def step_of(raw_study, name):
    study = parse_study(raw_study)
    return study, priced_plan(study).find(name)


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
    priced, request = priced_plan(study).find("tables"), Request("r", study.digest, "tables", State())
    if arrays.get("sum") is not None and isinstance(arrays["sum"], str):
        arrays = {"sum": np.zeros((priced.step.size, 5), np.float64)}
    assert fault(Reply(arrays, answers=request.digest), request, priced, study) == "reply-invalid"


def test_a_sum_larger_than_clipping_and_noise_allow_is_refused_by_name(study):
    """The bound is public: the step's limit and twelve deviations of the noise. At the bound it passes, one unit further it does not."""
    priced, request = priced_plan(study).find("tables"), Request("r", study.digest, "tables", State())
    bound = int(priced.step.limit + TAIL * share_std(priced, study.privacy, study.rounds.quorum))

    def verdict(value, masked=False):
        vector = np.zeros(priced.step.size, np.int64)
        vector[7] = value
        reply = Reply({"sum": RING.pack(RING.encode(vector))}, answers=request.digest)
        return fault(reply, request, priced, study, masked=masked)

    assert verdict(bound) is None and verdict(-bound) is None
    assert verdict(bound + 1) == verdict(-bound - 1) == "reply-too-large"
    assert verdict(bound + 1, masked=True) is None, "a masked vector is uniform: there is nothing to look at"


def test_a_model_that_is_malformed_not_finite_or_too_far_away_is_refused_by_name(raw_study):
    raw_study["family"] = {"name": "dp-gan", "parameters": {"rounds": 1, "critic_steps": 1}}
    study, priced = step_of(raw_study, "round 1")
    from medsynx.generators.dp_gan import initial_weights

    good = initial_weights(study)
    request = Request("r", study.digest, "round 1", State(good))

    def verdict(**changed):
        return fault(Reply({**good, **changed}, answers=request.digest), request, priced, study)

    bias, reach = good["in.bias"], priced.step.reach
    assert verdict() is None and verdict(**{"in.bias": bias + np.float32(0.99 * reach)}) is None
    assert verdict(**{"in.bias": np.full_like(bias, np.nan)}) == "reply-not-finite"
    assert verdict(**{"mid.weight": good["mid.weight"].reshape(1, -1)}) == "reply-invalid"
    assert verdict(**{"in.bias": bias.astype(np.float64)}) == "reply-invalid"
    assert verdict(**{"in.bias": bias + np.float32(1.01 * reach)}) == "reply-too-large"
    assert verdict(**{"in.bias": np.full_like(bias, -3e38)}) == "reply-too-large"
    mean = combine({"a": Reply(good), "b": Reply({n: w * 3 for n, w in good.items()})}, priced, study)
    assert np.allclose(mean.arrays["mid.weight"], good["mid.weight"] * 2, atol=1e-6)


def test_an_answer_to_another_step_or_run_is_refused_by_name(tmp_path, study):
    """Cargo kept from one step and sent for the next, or from a run before, even where its shape fits."""
    kept = {}

    def parrot(name, key):
        honest = handlers(tmp_path / name, study, count=1)["s0"]

        def answer(request):
            if key(request) not in kept:
                kept[key(request)] = honest(request)
            return kept[key(request)]

        return answer

    three = handlers(tmp_path, study)
    outcome = Run(study, InProcessFederation({**three, "x": parrot("x", lambda r: "x")}), "r1").conduct()
    assert [r.missing.get("x") for r in outcome.rounds] == [None] + ["reply-replayed"] * 3
    other = handlers(tmp_path / "second", study)
    again = Run(study, InProcessFederation({**other, "x": lambda r: kept["x"]}), "r2").conduct()
    assert again.rounds[0].missing == {"x": "reply-replayed"}


def test_a_site_that_is_late_again_and_again_sits_out_and_may_come_back():
    roll = Attendance(quorum=2)
    asked = []
    for _ in range(12):
        called, why = roll.call(["a", "b", "slow"])
        assert set(called) | set(why) == {"a", "b", "slow"} and "late" not in why.values()
        asked.append("slow" in called)
        roll.note(called, {"slow": "late"} if "slow" in called else {})
    assert asked == [True, True, False, False, True, False, False, False, False, True, False, False]
    called, why = roll.call(["b", "slow"])
    assert called == ["b", "slow"] and why == {"a": "offline"}, "not set aside while a quorum needs it"
    roll.note(called, {})
    assert roll.call(["a", "b", "slow"]) == (["a", "b", "slow"], {}), (
        "one answer in time clears it; who was away is back"
    )


def test_a_site_that_was_away_is_asked_as_soon_as_it_is_back():
    """Flower counts a site that died as online for a minute: it is late meanwhile, and was not slow."""
    roll = Attendance(quorum=2)
    for online, asked in (("abx", "abx"), ("abx", "abx"), ("abx", "ab"), ("ab", "ab"), ("abx", "abx"), ("abx", "abx")):
        called, _ = roll.call(online)
        assert called == list(asked)
        roll.note(called, {"x": "late"} if "x" in called else {})
    assert roll.call("abx") == (["a", "b"], {"x": "set-aside"})


def test_a_slow_site_costs_two_deadlines_and_not_one_a_step(tmp_path, study):
    class Slow(InProcessFederation):
        """One site is late whenever it is asked; the others, however slow this machine, never are."""

        def _one(self, request, site, deadline_seconds):
            return Answer(site, None, "late") if site == "slow" else super()._one(request, site, 600)

    sites = {**handlers(tmp_path, study), "slow": refuse("never heard")}
    outcome = Run(study, Slow(sites), "r1").conduct()
    assert [r.missing.get("slow") for r in outcome.rounds] == ["late", "late", "set-aside", "set-aside"]
    assert all(r.answered == ["s0", "s1", "s2"] for r in outcome.rounds)
