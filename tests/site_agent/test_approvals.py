"""The privacy officer's decisions: they expire, can be taken back, are written down, and a spoilt one is none."""

import io
import json
import logging
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from typer.testing import CliRunner

from medsynx import logs
from medsynx.errors import MedsynxError
from medsynx.generators.base import State
from medsynx.study import load_study
from medsynx.until import until
from medsynx.wire import Request
from site_agent import approvals
from site_agent.approvals import me
from site_agent.cli import app
from site_agent.door import Door
from site_agent.service import SiteService
from tests.conftest import small_table
from tests.helpers import make_site


@pytest.fixture
def desk(tmp_path, study, raw_study):
    """A site that has approved nothing, and the study as a file."""
    site = make_site(tmp_path / "north", study, small_table(300, 1), approve=False, approvers=("Dr. Grey", me()))
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(raw_study, sort_keys=False))
    return site, file, load_study(file)


def run(site, *words):
    """A command's output, or the code it was refused with."""
    done = CliRunner().invoke(app, [words[0], "--dir", str(site.path), *map(str, words[1:])])
    if isinstance(done.exception, MedsynxError):
        return done.exception.code
    assert done.exit_code == 0, done.output
    return done.output


def listed(site):
    return [(s["state"], s["name"]) for s in json.loads(run(site, "studies", "--json"))]


def ask(site, study):
    return SiteService(site).answer(Request("run-1", study.digest, "tables", State())).refusal


def decided(site):
    return [(e["kind"], e["by"]) for e in Door(site).audit.chain.entries() if e["kind"].startswith("study-")]


@pytest.mark.parametrize("trust", ["local", "secure-sum"])
def test_the_officer_is_told_whether_a_sum_leaves_masked(desk, raw_study, trust):
    site, file, _ = desk
    raw_study["privacy"]["trust"], raw_study["rounds"]["quorum"] = trust, 3
    file.write_text(yaml.safe_dump(raw_study))
    shown = (
        CliRunner().invoke(app, ["approve", "--dir", str(site.path), str(file), "--by", "Dr. Grey"], input="n\n").output
    )
    masked, bare = "leave as a masked sum", "leave as a noised sum, not masked"
    assert (masked in shown, bare in shown) == (trust == "secure-sum", trust == "local"), shown


def test_from_pending_to_approved_to_refused_and_back(desk):
    site, file, study = desk
    assert ask(site, study) == "study-not-approved" and listed(site) == [("pending", None)], "known by its digest only"
    run(site, "check", file)
    (seen,) = json.loads(run(site, "studies", "--json"))
    assert (seen["state"], seen["digest"], seen["family"], seen["epsilon"]) == ("pending", study.digest, "marginals", 2)
    assert seen["bytes"] > 1000 and ask(site, study) == "study-not-approved"
    run(site, "refuse", study.digest[:12], "--reason", "no ethics vote", "--by", "Dr. Grey")
    assert listed(site) == [("refused", "small")] and ask(site, study) == "study-not-approved"
    run(site, "check", file)
    assert listed(site) == [("refused", "small")], "looking at it again decides nothing"
    assert "no ethics vote" in run(site, "approve", study.digest[:12], "--by", "Dr. Grey", "--yes")
    assert site.approval(study.digest).approved_by == "Dr. Grey" and ask(site, study) is None
    run(site, "refuse", file, "--reason", "withdrawn")
    assert ask(site, study) == "study-not-approved", "a study that ran is not run any more"
    assert decided(site) == [
        ("study-refused", "Dr. Grey"),
        ("study-approved", "Dr. Grey"),
        ("study-refused", approvals.me()),
    ]
    assert "withdrawn" in run(site, "audit") and "withdrawn" in run(site, "studies")


def test_a_restored_approval_does_not_undo_a_refusal(desk):
    """The file says approved, as a back-up or a hand may make it; the audit log knows better."""
    site, file, study = desk
    run(site, "approve", file, "--yes")
    held = {f: f.read_bytes() for f in (site.path / "approvals").iterdir()}
    run(site, "refuse", file, "--reason", "withdrawn")
    for path, content in held.items():
        path.write_bytes(content)
    assert ask(site, study) == "study-not-approved"
    run(site, "approve", file, "--yes")
    assert ask(site, study) is None


def test_an_approval_expires(desk, monkeypatch):
    site, file, study = desk
    run(site, "approve", file, "--expires", "30", "--yes")
    end = json.loads(run(site, "studies", "--json"))[0]["expires_at"]
    assert timedelta(days=29) < datetime.fromisoformat(end) - datetime.now(UTC) <= timedelta(days=30)

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=31)

    monkeypatch.setattr(approvals, "datetime", Later)
    assert listed(site) == [("expired", "small")] and ask(site, study) == "study-not-approved"
    with pytest.raises(MedsynxError, match="expired") as refused:
        site.approval(study.digest)
    assert "approve" in refused.value.hint


@pytest.mark.parametrize("text", ["0", "soon", "2001-01-01", "-3", "12x", "99999999999", "2027-02-30"])
def test_times_that_are_none(text, desk):
    with pytest.raises(MedsynxError, match="no time ahead"):
        until(text)
    assert run(desk[0], "approve", desk[1], "--expires=" + text, "--yes") == "request-invalid"


def test_times_ahead():
    now = datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert [until(t, now) - now for t in ("2", "2d", "24h", "30m", "2026-05-01")] == [
        timedelta(days=2),
        timedelta(days=2),
        timedelta(hours=24),
        timedelta(minutes=30),
        timedelta(hours=12),
    ]


def test_a_spoilt_decision_is_none(desk):
    """Half-written, without an end, of another study, or with a word too many."""
    site, file, study = desk
    run(site, "approve", file, "--yes")
    target = site.path / "approvals" / f"{study.digest}.json"
    whole = target.read_text()
    good = json.loads(whole)
    endless = {k: v for k, v in good.items() if k != "expires_at"}
    for spoilt in (whole[: len(whole) // 2], "", json.dumps(endless), json.dumps({**good, "extra": 1}), "[]", "null"):
        target.write_text(spoilt)
        assert ask(site, study) == "study-not-approved", spoilt[:40]
        assert listed(site)[0][0] in ("pending", "expired")
    target.write_text(whole)
    assert ask(site, study) is None
    other = site.path / "approvals" / f"{'a' * 64}.json"
    other.write_text(whole)
    with pytest.raises(MedsynxError, match="not approved"):
        site.approval("a" * 64)


def test_what_is_neither_file_nor_digest(desk):
    site, _, study = desk
    assert run(site, "refuse", "nothing.yaml", "--reason", "x") == "study-unreadable"
    assert run(site, "approve", study.digest, "--yes") == "study-unreadable", "nobody can approve what nobody read"
    run(site, "refuse", study.digest, "--reason", "never")
    assert listed(site) == [("refused", None)]


def test_an_approval_that_cannot_be_written_down_does_not_count_and_a_refusal_does(desk):
    import sqlite3

    site, file, study = desk
    run(site, "approve", file, "--yes")
    with sqlite3.connect(site.path / "audit.sqlite") as db:
        db.execute("DROP TRIGGER no_update")
        db.execute("UPDATE entry SET body = '{}' WHERE id = 1")
    assert run(site, "refuse", file, "--reason", "x") == "ledger-broken"
    with pytest.raises(MedsynxError, match="was refused"):
        site.approval(study.digest)
    assert run(site, "approve", file, "--yes") == "ledger-broken"
    with pytest.raises(MedsynxError, match="was refused"):
        site.approval(study.digest)


def test_what_a_coordinator_writes_does_not_move_the_officers_cursor(desk, caplog):
    site, _, study = desk
    evil = "\x1b[2J\x9b1A\u202eapproved\n"
    service = SiteService(site)
    for request in (
        Request("run-1", evil, "tables", State()),
        Request("run-1", study.digest, evil, State()),
        Request("run-1" + evil, study.digest, "tables", State()),
        Request("run-1", study.digest, "mask", State(), "share", {}),
    ):
        assert service.answer(request).refusal
    Door(site).audit.refused(evil, evil, evil, "study-not-approved")
    Door(site).audit.chain.append({**Door(site).audit.chain.entries()[0], "study": "\x1b[2J", "step": "\x1b[2J"})
    entries = Door(site).audit.chain.entries()
    assert {e["step"] for e in entries[:-1]} == {"tables", "?", "mask"} and entries[0]["study"] == "?"
    assert listed(site) == [("pending", None)]
    for shown in (*run(site, "studies").split("\n"), *run(site, "audit").split("\n"), *caplog.messages):
        assert shown.isprintable(), repr(shown)


@pytest.mark.parametrize("form", ["text", "json"])
def test_logs_hold_no_control_characters(form, monkeypatch):
    monkeypatch.setenv(logs.VARIABLE, form)
    handlers, out = logging.root.handlers[:], io.StringIO()
    logging.root.handlers.clear()
    try:
        logs.start(out)
        logging.getLogger("x").warning("asked for %s", "\x1b[2J\x9b\u202e")
    finally:
        logging.root.handlers[:] = handlers
    assert "asked for ?[2J??" in out.getvalue()
