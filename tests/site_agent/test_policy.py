"""``site.yaml``: default deny, and what it says about hours, bytes and who approves."""

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from evaluation.programme import full_plan
from medsynx.errors import MedsynxError
from medsynx.generators import FAMILIES
from medsynx.generators.base import State
from medsynx.wire import Request
from site_agent import clock
from site_agent.door import Door
from site_agent.policy import Hours, SiteFolder, SitePolicy, me
from site_agent.service import SiteService
from tests.conftest import small_table
from tests.helpers import make_site

EXAMPLE = Path(__file__).parents[2] / "configs" / "site.yaml"
NIGHT = {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "18:00", "to": "06:00", "zone": "Europe/Zurich"}


def refusal(call) -> str:
    with pytest.raises(MedsynxError) as caught:
        call()
    return caught.value.code


def at(monkeypatch, wall: datetime, *, boot: str = "b", up: float = 0.0) -> None:
    """Set the site's two clocks."""
    monkeypatch.setattr(clock, "read", lambda: clock.Reading(wall, boot, up))


def ask(site: SiteFolder, study, run: str, step: str = "tables"):
    return SiteService(site).answer(Request(run, study.digest, step, State()))


def test_the_example_is_a_policy_that_names_every_limit():
    raw = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    policy = SitePolicy.model_validate(raw)
    named = {f.alias or n for n, f in type(policy.limits).model_fields.items()}
    assert set(raw["limits"]) == named and set(raw) == set(SitePolicy.model_fields)
    assert set(policy.limits.families) <= set(FAMILIES) and not policy.testing_without_noise
    assert policy.share("cohort", "scans") and not policy.share("cohort", "registry")


def test_nothing_is_allowed_that_is_not_written(tmp_path, study):
    folder = SiteFolder(tmp_path)
    (tmp_path / "site.yaml").write_text("site: north\ndatasets: {}\n")
    assert folder.policy().limits.approvers == () and folder.policy().limits.trust == ("local",)
    for text in ("site: north\ndatasets: {}\nlimits: {epsilon: 3}\n", "site: north\n", "site: [", "3\n"):
        (tmp_path / "site.yaml").write_text(text)
        assert refusal(folder.policy) == "policy-refused"
    (tmp_path / "site.yaml").write_text("site: north\ndatasets: {}\nlimits: {hours: {from: 8, to: 9, zone: Mars}}\n")
    with pytest.raises(MedsynxError) as caught:
        folder.policy()
    assert any("zone" in line for line in caught.value.details), "the wrong key is named"


@pytest.mark.parametrize(
    ("moment", "open_"),
    [
        ("2026-01-05T18:00", True),  # a Monday
        ("2026-01-05T17:59", False),
        ("2026-01-06T05:59", True),
        ("2026-01-06T06:00", False),
        ("2026-01-05T03:00", False),  # before Monday's window: Sunday's is not one
        ("2026-01-10T05:00", True),  # Saturday morning belongs to Friday's window
        ("2026-01-10T19:00", False),
        ("2026-07-07T05:30", True),  # summer time
    ],
)
def test_hours_are_the_sites_own_and_may_pass_midnight(moment, open_):
    hours = Hours.model_validate(NIGHT)
    from zoneinfo import ZoneInfo

    local = datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo("Europe/Zurich"))
    assert hours.open(local.astimezone(UTC)) is open_


def test_hours_survive_the_file_and_times_without_quotes(tmp_path, study):
    site = make_site(tmp_path / "n", study, small_table(300, 1), hours=Hours.model_validate({**NIGHT, "from": 1080}))
    assert site.policy().limits.hours == Hours.model_validate(NIGHT)
    day = Hours.model_validate({"from": "08:00", "to": "17:00", "zone": "UTC"})
    assert day.open(datetime(2026, 1, 10, 16, tzinfo=UTC)) and not day.open(datetime(2026, 1, 10, 17, tzinfo=UTC))


def test_out_of_hours_nothing_is_answered_or_charged_and_the_reason_stays(tmp_path, study, monkeypatch, caplog):
    at(monkeypatch, datetime(2026, 1, 5, 12, tzinfo=UTC))
    site = make_site(tmp_path / "n", study, small_table(300, 1), hours=Hours.model_validate(NIGHT))
    with caplog.at_level(logging.WARNING):
        reply = ask(site, study, "run-1")
    assert reply.refusal == "policy-refused" and reply.arrays == {} and "at this hour" in caplog.text
    assert Door(site).ledger.chain.entries() == []
    at(monkeypatch, datetime(2026, 1, 5, 22, tzinfo=UTC))
    assert ask(site, study, "run-1").refusal is None


@pytest.mark.parametrize("boot", ["same", "another"])
def test_a_clock_set_back_opens_no_hours_again(tmp_path, study, monkeypatch, boot):
    """Neither within one start of the machine, where the other clock tells, nor across one."""
    hours = Hours.model_validate({"from": "18:00", "to": "19:00", "zone": "UTC"})
    at(monkeypatch, datetime(2026, 1, 5, 18, 30, tzinfo=UTC), boot="same", up=0)
    site = make_site(tmp_path / "n", study, small_table(300, 1), hours=hours, epsilon_lifetime=100)
    assert ask(site, study, "run-1").refusal is None
    true_wait = 3600.0 if boot == "same" else 5.0
    set_back = datetime(2026, 1, 5, 18, 45 if boot == "same" else 5, tzinfo=UTC)
    at(monkeypatch, set_back, boot=boot, up=true_wait)
    assert ask(site, study, "run-2").refusal == "policy-refused"
    Door(site).ledger.settle("table", "run-1", "late")
    assert ask(site, study, "run-2").refusal == "policy-refused", "what is written meanwhile is no new beginning"
    at(monkeypatch, datetime(2026, 1, 6, 18, 1, tzinfo=UTC), boot=boot, up=84_000)
    assert ask(site, study, "run-2").refusal is None


def test_bytes_a_day_and_a_study(tmp_path, study, monkeypatch):
    (size,) = [s.bytes for s in full_plan(study) if s.name == "tables"]
    whole = sum(s.bytes for s in full_plan(study))
    table, begin = small_table(300, 1), datetime(2026, 1, 5, 12, tzinfo=UTC)
    at(monkeypatch, begin)
    day = make_site(tmp_path / "day", study, table, bytes_per_day=2 * size, epsilon_lifetime=100)
    assert [ask(day, study, f"run-{k}").refusal for k in range(3)] == [None, None, "policy-refused"]
    at(monkeypatch, begin + timedelta(hours=23), up=23 * 3600)
    assert ask(day, study, "run-3").refusal == "policy-refused"
    at(monkeypatch, begin + timedelta(hours=25), up=25 * 3600)
    assert ask(day, study, "run-3").refusal is None
    assert len([e for e in Door(day).ledger.chain.entries() if e["kind"] == "reserve"]) == 3, "refusals charge nothing"
    one = make_site(tmp_path / "one", study, table, bytes_per_study=whole, epsilon_lifetime=100)
    assert [ask(one, study, f"run-{k}").refusal for k in range(20)].count(None) == whole // size
    with pytest.raises(MedsynxError, match="a study"):
        make_site(tmp_path / "none", study, table, bytes_per_study=whole - 1)


def test_only_those_named_may_approve(tmp_path, study):
    site = make_site(tmp_path / "n", study, small_table(300, 1), approve=False, approvers=("a.meier",))
    with pytest.raises(MedsynxError, match=r"may not approve studies, a\.meier may"):
        site.approve(study, "table")
    with pytest.raises(MedsynxError, match=r"c\.rossi may not"):
        site.approve(study, "table", by="c.rossi")
    assert ask(site, study, "run-1").refusal == "study-not-approved"
    site.approve(study, "table", by="a.meier")
    assert ask(site, study, "run-1").refusal is None
    new = make_site(tmp_path / "new", study, small_table(300, 1), approve=False)
    assert new.policy().limits.approvers == (me(),), "who sets a site up may approve until the file says otherwise"
