"""What a hospital's IT is told: the last answer and refusal, approvals that end, books that are not sound, and parts that do not stay up."""

import json
import os
import time
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from medsynx.errors import MedsynxError
from medsynx.flower_processes import CONTACT
from medsynx.generators.base import State
from medsynx.processes import Supervisor, alone
from medsynx.wire import Request
from site_agent import clock, pulse
from site_agent.cli import app
from site_agent.condition import HOME, Condition
from site_agent.service import SiteService
from tests.conftest import small_table
from tests.helpers import make_site


@pytest.fixture
def site(tmp_path, study):
    return make_site(tmp_path / "north", study, small_table(100, 1), approve=False)


def ask(site, digest, run="run-1"):
    return SiteService(site).answer(Request(run, digest, "tables", State())).refusal


def health(site):
    done = CliRunner().invoke(app, ["health", "--dir", str(site.path)])
    return done.exception.code if isinstance(done.exception, MedsynxError) else "", done.output


def health_json(site):
    done = CliRunner().invoke(app, ["health", "--dir", str(site.path), "--json"])
    return done.exit_code, json.loads(done.output)


def test_answers_refusals_and_ends_of_approvals(site, study):
    new = Condition.of(site)
    assert (new.heard, new.answered, new.refused, new.ending, new.trouble) == (None, None, None, (), None)
    assert not (site.path / "ledger.sqlite").exists(), "who looks makes no books"
    assert ask(site, study.digest) == "study-not-approved"
    assert Condition.of(site).refused[1] == "study-not-approved" and Condition.of(site).answered is None
    for days, soon in ((13, 1), (15, 0)):
        site.approve(study, "table", expires=datetime.now(UTC) + timedelta(days=days))
        assert len(Condition.of(site).ending) == soon
    assert ask(site, study.digest) is None
    seen = Condition.of(site)
    assert timedelta() <= datetime.now(UTC) - seen.answered < timedelta(minutes=1)
    told = "\n".join(seen.metrics())
    assert f"medsynx_site_last_answer_seconds {int(seen.answered.timestamp())}" in told
    assert 'medsynx_site_last_refusal_seconds{code="study-not-approved"} ' in told
    assert "medsynx_site_approvals_ending_soon 0" in told and "medsynx_site_books_sound 1" in told


@pytest.mark.parametrize("gone", [True, False])
def test_broken_books_make_a_site_unwell_though_its_agent_runs(site, study, tmp_path, gone):
    site.approve(study, "table", expires=datetime.now(UTC) + timedelta(days=1))
    assert ask(site, study.digest) is None
    with Supervisor() as supervisor, alone(site.path / pulse.LOCK, MedsynxError("already-running", "")):
        supervisor.start("executor", ["sleep", "60"], tmp_path / "log")
        heart = pulse.Pulse(site)
        heart.beat(supervisor)
        code, told = health(site)
        assert code == "" and "the agent runs" in told and "verified" in told
        assert f"study {study.digest[:12]}: its approval ends on" in told
        status, found = health_json(site)
        assert (status, found["problem"], found["refused"]) == (0, None, None)
        assert found["answered_at"] and list(found["approvals_ending"]) == [study.digest]
        if gone:
            (site.path / "ledger.sqlite").unlink()
        else:
            (site.path / "witness" / "ledger.jsonl").write_text("")
        code, told = health(site)
        assert (
            code == "ledger-broken" and "answers nothing: ledger.sqlite lacks" in told and "the agent runs" not in told
        )
        status, found = health_json(site)
        assert (status, found["problem"]) == (35, code) and "lacks" in found["says"]
        heart.beat(supervisor)
        assert "medsynx_site_books_sound 1" in (site.path / pulse.FILE).read_text(), "looked at once a minute"
        heart.looked -= pulse.LOOK_SECONDS
        heart.beat(supervisor)
        assert "medsynx_site_books_sound 0" in (site.path / pulse.FILE).read_text()


def test_a_coordinator_that_is_not_heard_is_told(site, tmp_path):
    def told():
        lines = Condition.of(site).lines()
        return lines[0], any("the line or the coordinator is down" in line for line in lines)

    assert told() == ("coordinator last heard: never", False)
    contact = site.path / HOME / CONTACT
    contact.parent.mkdir(parents=True)
    for seconds, silent in ((50, False), (70, True)):
        at = time.time() - seconds
        contact.touch()
        os.utime(contact, (at, at))
        assert told() == (f"coordinator last heard: {datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S UTC}", silent)
    with Supervisor() as supervisor:
        pulse.beat(site.path, supervisor)
    assert f"medsynx_site_coordinator_heard_seconds {at:.0f}\n" in (site.path / pulse.FILE).read_text()


def test_a_clock_behind_the_audit_log_is_named(site, monkeypatch):
    monkeypatch.setattr(clock, "read", lambda: clock.Reading(datetime.now(UTC) + timedelta(hours=2), "b", 1.0))
    assert ask(site, "a" * 64) == "study-not-approved"
    monkeypatch.undo()
    trouble = Condition.of(site).trouble
    assert trouble.code == "policy-refused" and "seconds behind" in trouble.message and "acknowledge" in trouble.hint


def test_a_supernode_that_is_started_again_and_again_is_not_up(site, tmp_path):
    with Supervisor() as supervisor:
        supervisor.start("supernode", ["sleep", "60"], tmp_path / "log", restart=True)
        service = supervisor.services["supernode"]
        for restarts, age, up in ((0, 0, 1), (3, 5, 0), (3, pulse.STALE_SECONDS, 1)):
            service.restarts, service.started = restarts, service.started - age
            pulse.beat(site.path, supervisor)
            assert f'part_up{{part="supernode"}} {up}' in (site.path / pulse.FILE).read_text()
