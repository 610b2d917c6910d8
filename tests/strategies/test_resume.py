"""A coordinator that stops between two exchanges goes on behind the last one: nothing is asked or paid twice."""

from __future__ import annotations

import numpy as np
import pytest

from medsynx.generators.base import State
from strategies.checkpoint import Checkpoint, load, save
from strategies.in_process import InProcessFederation
from strategies.rounds import Run
from tests.strategies.test_rounds import handlers


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
