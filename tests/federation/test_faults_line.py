"""A hospital whose line goes dead while its processes live, for seconds and for minutes."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext

import pytest

from medsynx.processes import Supervisor
from medsynx.study import parse_study
from onehost.federation import LocalFederation
from tests.conftest import RAW_STUDY
from tests.federation.field import Field
from tests.federation.line import Line

pytestmark = [pytest.mark.federation, pytest.mark.slow, pytest.mark.timeout(600)]
SITES = ("east", "north", "south", "west")
STUDY = parse_study(
    {**RAW_STUDY, "name": "lines", "rounds": {"quorum": 3, "deadline_seconds": 60}, "evaluation": {"federated": False}}
)


class Remote(LocalFederation):
    """West reaches the gate over a line of its own."""

    def _start_supernode(self, name: str) -> None:
        gate = self.gate_port
        if name == "west":
            self.line = Line(gate)
            self.gate_port = self.line.port
        super()._start_supernode(name)
        self.gate_port = gate


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    with Supervisor() as supervisor:
        yield Field(tmp_path_factory.mktemp("line"), supervisor, STUDY, dict.fromkeys(SITES, 300), federation=Remote)


@pytest.mark.parametrize("when", ["asked", "computing", "answered"])
def test_a_line_that_is_dead_for_seconds_costs_time_only(field, when):
    """Longer than an HTTP request waits, shorter than Flower takes to count the site as offline."""
    field.online()
    reached = {
        "asked": lambda: field.until(field.at(when, "tables")),
        "computing": lambda: field.caught("west", worker=True),
        "answered": lambda: field.until(lambda: field.left("west", when)),
    }
    with ExitStack() as cut:
        with field.waiting("west") if when == "computing" else nullcontext():
            field.ask(when)
            reached[when]()
            cut.enter_context(field.federation.line.dead())
        time.sleep(15)
    result = field.result(when, 300)
    assert result["status"] == "finished" and result["missing"] == {} and result["sites"] == list(SITES), result
    field.settled(when)


def test_a_line_that_is_dead_for_minutes_costs_one_deadline_and_the_site_comes_back_by_itself(field):
    """Its processes live on, unattended: the run ends without it, and the next one has it again."""
    field.online()
    living = field.pid("supernode west"), field.pid("executor west")
    with field.federation.line.dead():
        field.ask("silent")
        result = field.result("silent", 300)
        assert result["status"] == "finished" and result["sites"] == ["east", "north", "south"], result
        missing = [r["missing"].get("west") for r in field.rounds("silent")]
        assert missing[0] in ("late", "offline") and missing.count("late") <= 1, "a minute later it counts as offline"
        field.until(lambda: field.federation.nodes["west"] not in field.there(), 150)
    field.online("west")
    field.ask("heard")
    result = field.result("heard", 300)
    assert result["missing"] == {} and result["sites"] == list(SITES), result
    assert living == (field.pid("supernode west"), field.pid("executor west"))
    field.settled("silent")
