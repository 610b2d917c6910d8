"""A hospital whose line goes dead or half dead, is cut again and again, or slow, while its processes live."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext

import pytest

from medsynx.processes import Supervisor
from medsynx.study import parse_study
from onehost.certificates import authority, certified
from onehost.federation import LocalFederation
from tests.conftest import RAW_STUDY
from tests.federation.field import Field, kill
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


def test_a_reply_whose_taking_is_not_heard_of_is_neither_lost_nor_doubled(field):
    """Half of the line is dead, for longer than the SuperNode waits: what it announced and pushed was taken, and it does so again."""
    field.online()
    field.ask("half")
    field.until(lambda: field.left("west", "half"), 120)
    with field.federation.line.dead(half=True):
        time.sleep(40)
    result = field.result("half", 300)
    assert result["status"] == "finished" and result["missing"] == {} and result["sites"] == list(SITES), result
    field.settled("half")


def test_a_line_that_is_slow_and_cut_again_and_again_costs_time_only(field):
    """A reset meets handshakes, requests and answers: a message that was handed out, a reply that was taken."""
    field.online()
    line, living = field.federation.line, field.pid("supernode west")
    line.cut, line.delay, line.rate = 0.05, 0.1, 50_000
    try:
        field.ask("cut")
        result = field.result("cut", 300)
    finally:
        line.cut, line.delay, line.rate = 0.0, 0.0, None
    assert line.cuts and result["status"] == "finished" and result["missing"] == {}, (line.cuts, result)
    assert field.pid("supernode west") == living
    field.settled("cut")


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


class Renewed(LocalFederation):
    """Its certificate ends within minutes, and can be replaced by one of the same authority."""

    def __init__(self, *how, **more):
        super().__init__(*how, **more)
        self.authority = authority()
        self.certify(60 / 86_400)
        self.control.__init__(f"127.0.0.1:{self.private_port}", self.tls.ca)

    def certify(self, days):
        certified(self.tls.ca.parent, *self.authority, days=days)

    def restart(self):
        kill(self.supervisor.pids()["superlink"])


def test_a_certificate_that_has_ended_is_replaced_and_the_hospitals_need_nothing(tmp_path):
    ended = time.monotonic() + 60
    with Supervisor() as supervisor:
        field = Field(tmp_path, supervisor, STUDY, dict.fromkeys(SITES[1:], 300), federation=Renewed)
        living = [field.pid(f"executor {s}") for s in SITES[1:]]
        while time.monotonic() < ended:
            time.sleep(0.5)
        field.federation.restart()
        field.until(lambda: all("certificate has expired" in said(field, s) for s in SITES[1:]), 120)
        field.federation.certify(days=9)
        field.federation.restart()
        field.online(seconds=180)
        field.ask("renewed")
        result = field.result("renewed", 300)
        assert result["status"] == "finished" and result["missing"] == {}, result
        assert living == [field.pid(f"executor {s}") for s in SITES[1:]]


def said(field, site):
    return " ".join(field.federation.supervisor.tail(f"supernode {site}", 20))
