"""Faults on the deployed runtime: real processes over TLS on loopback, killed, filled up, stopped and lied to. More in ``test_faults_slow.py``."""

from __future__ import annotations

import resource

import pytest

from medsynx.generators.base import State
from medsynx.processes import Supervisor
from medsynx.study import parse_study
from medsynx.wire import Request
from site_agent.service import SiteService
from tests.conftest import RAW_STUDY
from tests.federation.field import Field, gone, kill

pytestmark = [pytest.mark.federation, pytest.mark.timeout(900)]
SITES = ("east", "north", "west")
RAW = {
    **RAW_STUDY,
    "name": "faults",
    "rounds": {"quorum": 2, "deadline_seconds": 120},
    "evaluation": {"federated": False},
}
STUDY = parse_study(RAW)


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    with Supervisor() as supervisor:
        yield Field(tmp_path_factory.mktemp("faults"), supervisor, STUDY, dict.fromkeys(SITES, 300))


def test_a_serverapp_that_is_killed_goes_on_behind_its_last_exchange(field):
    """In the middle of an exchange: what sites answered meanwhile is given again, and nothing is charged twice."""
    with field.second_step("app", "west"):
        kill(field.server_app("app"))
    result = field.result("app")
    assert result["status"] == "finished" and result["sites"] == list(SITES) and result["missing"] == {}
    starts = field.coordinator.attempts("app")
    assert [s["why"] for s in starts] == ["asked for", "its ServerApp ended without a result"]
    assert starts[1]["exchanges"] == 1, "the first exchange is not asked again"
    assert [field.charged(s, "app") for s in SITES] == [field.steps()] * 3, "each step once at every site"
    assert [r["step"] for r in field.rounds("app")] == field.steps()


def test_a_full_disk_at_a_site_keeps_it_out_uncharged_and_unread(field):
    """The kernel refuses every write beyond the size of its ledger; once there is room it takes part again (in the tests below)."""
    executor, size = field.pid("executor west"), (field.sites["west"] / "ledger.sqlite").stat().st_size
    before = resource.prlimit(executor, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        field.ask("full")
        full = field.result("full")
    finally:
        resource.prlimit(executor, resource.RLIMIT_FSIZE, before)
    assert full["status"] == "finished" and full["missing"] == {"west": "site-failed"}
    assert field.charged("west", "full") == [] == field.left("west", "full")


def test_a_superlink_that_is_killed_comes_back_and_its_run_goes_on(field):
    field.online()
    with field.second_step("link", "west"):
        kill(field.pid("superlink"))
    result = field.result("link")
    assert result["status"] == "finished" and set(result["sites"]) == set(SITES), result
    assert field.federation.supervisor.services["superlink"].restarts == 1
    field.settled("link")


def test_more_epsilon_other_columns_or_more_rounds_are_refused_by_every_site(field):
    """Whatever the coordinator changes makes another study, which nobody approved; and an approved one has no step but its own."""
    more = parse_study({**RAW, "privacy": {**RAW["privacy"], "epsilon": 8.0}})
    field.ask("more", more)
    result = field.result("more")
    assert result["code"] == "quorum-lost" and all(f"{s} (study-not-approved)" in result["message"] for s in SITES)
    site = SiteService.open(field.sites["east"])
    fewer = {k: v for k, v in RAW["columns"].items() if k != "grade"}
    longer = {"name": "dp-gan", "parameters": {"rounds": 400}}
    for change in ({"columns": fewer}, {"family": longer}, {"rounds": {**RAW["rounds"], "quorum": 1}}):
        other = parse_study({**RAW, **change})
        assert site.answer(Request("m", other.digest, "tables", State())).refusal == "study-not-approved"
    for step in ("round 1", "evaluate: reference", "tables "):
        assert site.answer(Request("m", STUDY.digest, step, State())).refusal == "step-not-planned"
    assert field.charged("east", "more") == field.charged("east", "m") == []


def test_a_run_that_is_stopped_ends_as_failed_and_its_process_with_it(field):
    field.online()
    with field.waiting("west"):
        field.ask("halt")
        field.until(field.at("halt", "tables"))
        process = field.until(lambda: field.server_app("halt"))
        (field.coordinator.run("halt") / "stop").touch()
        result = field.result("halt", 90)
    assert (result["status"], result["code"]) == ("failed", "run-stopped")
    assert field.coordinator.progress("halt")["status"] == "failed"
    field.until(lambda: gone(process))
    flower = int(field.coordinator.attempts("halt")[0]["flower"])
    assert field.federation.control.status(flower)[0] == "finished"
    assert len(field.coordinator.attempts("halt")) == 1, "and is not started again"


def test_a_worker_that_is_killed_is_told_at_once_and_costs_its_site_that_exchange_alone(field):
    """As the kernel does when memory runs out, in the middle of a task: nobody waits for the deadline, and what was charged stays charged."""
    field.online()
    field.idle("west")
    with field.waiting("west"):
        field.ask("worker")
        kill(field.caught("west", worker=True, seconds=180))
    result = field.result("worker")
    assert result["status"] == "finished" and result["missing"] == {"west": "site-failed"}, result
    assert [r["missing"] for r in field.rounds("worker")] == [{"west": "site-failed"}, {}]
    field.settled("worker")
