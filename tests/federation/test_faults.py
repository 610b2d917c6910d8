"""kill -9 of each party on the deployed runtime: real processes over TLS on loopback. The slow ones are in ``test_faults_slow.py``."""

from __future__ import annotations

import pytest

from medsynx.processes import Supervisor
from medsynx.study import parse_study
from tests.conftest import RAW_STUDY
from tests.federation.field import Field, kill

pytestmark = [pytest.mark.federation, pytest.mark.timeout(400)]
SITES = ("east", "north", "west")
STUDY = parse_study({**RAW_STUDY, "name": "faults", "rounds": {"quorum": 2, "deadline_seconds": 30}})


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    with Supervisor() as supervisor:
        yield Field(tmp_path_factory.mktemp("faults"), supervisor, STUDY, dict.fromkeys(SITES, 300))


def test_a_serverapp_that_is_killed_goes_on_behind_its_last_exchange(field):
    """In the middle of an exchange: what sites answered meanwhile is given again, and nothing is charged twice."""
    field.ask("app")
    field.until(field.at("app", "cliques"))
    first = field.until(lambda: field.server_app("app"))
    kill(first)
    result = field.result("app")
    assert result["status"] == "finished" and result["sites"] == list(SITES) and result["missing"] == {}
    starts = field.coordinator.attempts("app")
    assert [s["why"] for s in starts] == ["asked for", "its ServerApp ended without a result"] and starts[1][
        "exchanges"
    ] >= 1
    assert [field.charged(s, "app") for s in SITES] == [field.steps()] * 3, "each step once at every site"
    assert [r["step"] for r in field.rounds("app")] == field.steps()


def test_a_superlink_that_is_killed_comes_back_and_its_run_goes_on(field):
    field.ask("link")
    field.until(field.at("link", "cliques"))
    kill(field.pid("superlink"))
    result = field.result("link", 200)
    assert result["status"] == "finished" and set(result["sites"]) == set(SITES), result
    assert field.federation.supervisor.services["superlink"].restarts == 1
    field.settled("link")
