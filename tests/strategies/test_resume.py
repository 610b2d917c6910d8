"""A coordinator that stops between two exchanges goes on behind the last one: nothing is asked or paid twice."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from evaluation.programme import priced_plan
from medsynx.generators.base import State
from medsynx.study import parse_study
from medsynx.wire import Reply, Request
from site_agent.answers import Answers
from site_agent.audit import Audit, sent
from site_agent.ledger import Ledger
from site_agent.service import SiteService
from strategies.checkpoint import Checkpoint, exchanges, load, save
from strategies.federation import Answer
from strategies.in_process import InProcessFederation
from strategies.journal import Journal
from strategies.rounds import Run
from strategies.secure_sum import SecureSum
from tests.conftest import RAW_STUDY
from tests.helpers import masking_sites
from tests.strategies.test_rounds import handlers

MASKED = {
    **RAW_STUDY,
    "privacy": {**RAW_STUDY["privacy"], "trust": "secure-sum"},
    "rounds": {"quorum": 3, "deadline_seconds": 60},
    "evaluation": {"federated": False},
}


class Stopped(Exception):
    """Stands for a coordinator that is killed."""


class Stopping(InProcessFederation):
    """Dies before it asks for one step, and counts what was asked."""

    def __init__(self, handlers, asked: list[str], dies_before: str | None) -> None:
        super().__init__(handlers)
        self.asked, self.dies_before = asked, dies_before

    def ask(self, request, sites, deadline):
        if request.step == self.dies_before:
            raise Stopped
        self.asked.append(request.step)
        return super().ask(request, sites, deadline)


@pytest.mark.parametrize("dies_before", ["cliques", "evaluate: reference", "evaluate: hold-out"])
def test_a_run_goes_on_where_it_stopped(tmp_path, study, dies_before):
    sites, asked, file = handlers(tmp_path, study), [], tmp_path / "checkpoint.npz"
    with pytest.raises(Stopped):
        Run(study, Stopping(sites, asked, dies_before), "r1", checkpoint=file).conduct()
    outcome = Run(study, Stopping(sites, asked, None), "r1", checkpoint=file).conduct()
    steps = [s.step.name for s in outcome.plan.steps]
    assert asked == steps == [r.step for r in outcome.rounds], "each step once; sites refuse a step they answered"
    assert outcome.figures["tvd1"]["value"] is not None and outcome.private


def test_a_checkpoint_of_another_run_or_study_is_not_taken(tmp_path):
    file = tmp_path / "c.npz"
    assert load(file, "d", "r") is None
    state = State({"sum": np.arange(3)}, {"noise_std": {"tables": 1.5}})
    save(file, Checkpoint(state, {"study": "d", "name": "r", "private": True}, {"more": np.eye(2)}))
    held = load(file, "d", "r")
    assert held is not None and held.state.facts == state.facts and held.facts["private"] is True
    assert (held.state.arrays["sum"] == np.arange(3)).all() and (held.arrays["more"] == np.eye(2)).all()
    assert load(file, "d", "another") is None and load(file, "other", "r") is None


def test_one_without_noise_stays_marked_after_a_stop(tmp_path, study):
    sites = {**handlers(tmp_path, study, count=2), "loud": handlers(tmp_path / "l", study, count=1, noise=False)["s0"]}
    file = tmp_path / "checkpoint.npz"
    with pytest.raises(Stopped):
        Run(study, Stopping(sites, [], "cliques"), "r1", checkpoint=file).conduct()
    del sites["loud"]
    assert Run(study, InProcessFederation(sites), "r1", checkpoint=file).conduct().private is False


class Losing(InProcessFederation):
    """Dies after every site has answered one exchange and before an answer is read. Counts what was asked."""

    def __init__(self, handlers, at=("", "")) -> None:
        super().__init__(handlers)
        self.at, self.asked = at, []

    def ask(self, request, sites, deadline):
        answers, one = (
            super().ask(request, sites, deadline),
            next(iter(request.values())) if isinstance(request, dict) else request,
        )
        self.asked.append((one.step, one.exchange))
        if (one.step, one.exchange) == self.at:
            raise Stopped
        return answers


def books(folders):
    """What the ledgers and audit logs of sites say, step by step."""
    charged = [
        [e["step"] for e in Ledger(f / "ledger.sqlite").chain.entries() if e["kind"] == "reserve"] for f in folders
    ]
    left = [[(e["kind"], e["step"]) for e in Audit(f / "audit.sqlite").chain.entries()] for f in folders]
    return charged, left


@pytest.mark.parametrize("lost", ["tables", "evaluate: reference", "evaluate: hold-out"])
def test_an_answer_that_was_lost_is_given_again_byte_for_byte_and_charged_once(tmp_path, study, lost):
    sites, file = handlers(tmp_path, study), tmp_path / "checkpoint.npz"
    with pytest.raises(Stopped):
        Run(study, Losing(sites, (lost, "")), "r1", checkpoint=file).conduct()
    outcome = Run(study, Losing(sites), "r1", checkpoint=file).conduct()
    steps = [s.step.name for s in outcome.plan.steps]
    assert all(r.missing == {} for r in outcome.rounds) and [r.step for r in outcome.rounds] == steps
    charged, left = books([tmp_path / s for s in sites])
    assert charged == [steps] * 3, "each step once"
    assert all(e.count(("released", lost)) == e.count(("again", lost)) == 1 for e in left)


def test_only_the_same_request_gets_the_same_bytes(tmp_path, study):
    """Another state is another question: it is refused, because its answer would cost again. So is what was changed on the site's disk."""
    site = handlers(tmp_path, study, count=1)["s0"]
    asked = Request("r1", study.digest, "tables", State({}, {"x": 1}))
    first = site(asked)
    assert (site(asked).arrays["sum"] == first.arrays["sum"]).all() and site(asked).answers == asked.digest
    assert site(replace(asked, state=State({}, {"x": 2}))).refusal == "step-replayed"
    file = tmp_path / "s0" / "runs" / "r1.answer"
    assert file.stat().st_mode & 0o077 == 0
    answers = Answers(file.parent)
    answers.keep(asked, replace(first, arrays={"sum": first.arrays["sum"] ^ np.uint8(1)}))
    assert site(asked).refusal == "step-replayed", "the audit log holds other bytes"
    answers.keep(asked, first)
    (tmp_path / "s0" / "approvals" / f"{study.digest}.json").unlink()
    assert site(asked).refusal == "study-not-approved", "an approval that was taken back holds for what left, too"


def test_a_day_old_answer_is_gone(tmp_path):
    answers, old, new = Answers(tmp_path), Request("old", "d", "s", State()), Request("new", "d", "s", State())
    answers.keep(old, Reply())
    cut, going = (
        tmp_path / "old.answer.7.part",
        tmp_path / "other.npz.8.part",
    )  # of a writer that was killed, and of one that writes
    cut.touch(), going.touch()
    for file in (tmp_path / "old.answer", cut):
        os.utime(file, (0, 0))
    answers.keep(new, Reply())
    assert answers.find(old) is None and answers.find(new) is not None
    assert not cut.exists() and going.exists()


@pytest.mark.parametrize("exchange", ["advert", "share", "mask", "confirm", "unmask"])
def test_a_secure_sum_goes_on_in_the_exchange_it_stopped_in(tmp_path, exchange):
    """Sites mask once a step; with the journal and the same answers given again no vector is lost, whenever the coordinator dies."""
    study = parse_study(MASKED)
    folders = masking_sites(tmp_path / "sites", study, ("east", "north", "south", "west"))
    sites = {n: SiteService(f).answer for n, f in folders.items()}
    file, at = tmp_path / "checkpoint.npz", ("cliques", exchange)
    with pytest.raises(Stopped):
        Run(study, Losing(sites, at), "r1", checkpoint=file).conduct()
    again = Losing(sites)
    outcome = Run(study, again, "r1", checkpoint=file).conduct()
    assert again.asked[0] == at, "nothing before it is asked again"
    assert all(r.answered == sorted(sites) and r.missing == {} for r in outcome.rounds) and outcome.private
    charged, left = books([f.path for f in folders.values()])
    assert charged == [[s.step.name for s in outcome.plan.steps]] * 4
    assert all([kind for kind, _ in e].count("again") == 1 and e.count(("released", "cliques")) == 1 for e in left)
    for folder in folders.values():
        out = sent(Audit(folder.path / "audit.sqlite").chain.entries())
        (k,) = [k for k, (entry, _) in enumerate(out) if entry["kind"] == "again"]
        whole = out[k - 2 : k] if exchange == "mask" else out[k - 1 : k]  # a vector has its signature with it
        assert out[k][1] == sum(size for _, size in whole), "all of it counts again"
    assert not (tmp_path / "exchanges").exists(), "masked vectors do not stay at the coordinator"


@pytest.mark.parametrize(("exchange", "counts"), [("share", False), ("confirm", True)])
def test_a_secure_sum_goes_on_when_a_site_does_not_come_back_in_time(tmp_path, exchange, counts):
    """The sum goes on with the sites it was begun with: one that is away is in the total when its vector is there, and missing when it is not.
    Another that joined meanwhile waits for the next step."""
    study = parse_study(MASKED)
    folders = masking_sites(tmp_path / "sites", study, ("east", "far", "north", "south", "west"))
    sites = {n: SiteService(f).answer for n, f in folders.items()}
    late = sites.pop("east")
    file, at = tmp_path / "checkpoint.npz", ("tables", exchange)
    with pytest.raises(Stopped):
        Run(study, Losing(sites, at), "r1", checkpoint=file).conduct()
    del sites["west"]
    run = Run(study, Losing({**sites, "east": late}), "r1", checkpoint=file)
    run._exchange(run.plan.steps[0], State())
    assert run.rounds[0].answered == ["far", "north", "south"] + ["west"] * counts
    assert run.rounds[0].missing == {"east": "offline"} | ({} if counts else {"west": "offline"})


@pytest.mark.parametrize("odd", [Reply(message={"signature": [[]]}), Reply({"s" * 70_000: np.zeros(1)})])
def test_an_answer_that_has_no_form_is_its_sites_fault_and_stops_no_journal(tmp_path, study, odd):
    question, priced = Request("r1", study.digest, "tables", State()), priced_plan(study).find("tables")
    good = {"boxes": {"east": "AA=="}, "commitment": "AA=="}
    sites = {"east": lambda asked: Reply(message=good, answers=asked.digest), "odd": lambda asked: odd}
    journal = Journal(tmp_path / "exchanges", "label")
    for federation in (InProcessFederation(sites), InProcessFederation({})):  # asked, and read again
        failed: dict[str, str] = {}
        total = SecureSum(federation, study, priced, question, journal)
        assert total._ask("share", {"east": {}, "odd": {}}, failed)["east"].message == good
        assert failed == {"odd": "reply-invalid"}


@pytest.mark.parametrize("spoilt", ["cut", "zeros", "flipped", "empty"])
def test_a_spoilt_file_is_none(tmp_path, spoilt):
    """An answer, a journal or a checkpoint that the disk spoilt is as good as none; it fails no later step and no service."""
    asked, file = Request("r", "d", "s", State()), tmp_path / "checkpoint.npz"
    reply = Reply({"sum": np.arange(1000)}, answers=asked.digest)
    answers, journal = Answers(tmp_path), Journal(tmp_path, "label")

    def held():
        return answers.find(asked), journal.read("mask"), load(file, "d", "r"), exchanges(file)

    answers.keep(asked, reply)
    journal.write("mask", [Answer("east", reply)])
    save(file, Checkpoint(State({"sum": np.arange(1000)}), {"study": "d", "name": "r", "rounds": [{}]}, {}))
    assert all(held())
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0
        whole = path.read_bytes()
        half = len(whole) // 2
        flipped = whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]
        path.write_bytes({"cut": whole[:half], "zeros": bytes(half), "flipped": flipped, "empty": b""}[spoilt])
    assert not any(held())
