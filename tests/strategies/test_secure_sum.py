"""Secure sums between real site services: what the coordinator sees, what a site's books say, drop-outs, restarts, and refusals at the door."""

import json
import os
import shutil
import stat
import time
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from evaluation.programme import full_plan, priced_plan
from medsynx.errors import MedsynxError
from medsynx.generators.base import State
from medsynx.processes import Supervisor
from medsynx.secure_sum.ring import RING
from medsynx.study import parse_study
from medsynx.wire import Reply, Request
from site_agent import secure_sum as sessions
from site_agent.audit import sent
from site_agent.cli import app
from site_agent.door import Door, describe
from site_agent.identity import write_roster
from site_agent.pulse import Pulse
from site_agent.service import SiteService
from site_agent.traffic import run_bytes, step_bytes
from strategies.in_process import InProcessFederation
from strategies.rounds import QuorumLost, Run
from tests.conftest import RAW_STUDY, small_table
from tests.helpers import integers, make_site, masking_sites

NAMES = ("east", "north", "south", "west")
RAW = {
    **RAW_STUDY,
    "privacy": {**RAW_STUDY["privacy"], "trust": "secure-sum"},
    "rounds": {"quorum": 3, "deadline_seconds": 60},
}
STUDY = parse_study(RAW)
SHORT = parse_study({**RAW, "name": "short", "evaluation": {"federated": False}})


class Wire(InProcessFederation):
    """Keeps what every site answered; a site can be cut off before or after an exchange (its answer is lost then)."""

    def __init__(self, handlers, before=None, after=None):
        super().__init__(handlers)
        self.heard: list[tuple[str, Request, Reply | None]] = []
        self.before, self.after = before or {}, after or {}

    def _one(self, request, site, deadline_seconds):
        cut = self.before.get(site)
        order = ("", "advert", "share", "mask", "confirm", "unmask")
        if cut and order.index(request.exchange) >= order.index(cut):
            return super()._one(request, "nobody", deadline_seconds).__class__(site, None, "offline")
        answer = super()._one(request, site, deadline_seconds)
        self.heard.append((site, request, answer.reply))
        return answer.__class__(site, None, "late") if self.after.get(site) == request.exchange else answer


def answers(sites):
    """A new service for every request, as a forked child has."""
    return {n: (lambda request, path=s.path: SiteService.open(path).answer(request)) for n, s in sites.items()}


def run(sites, study=SHORT, name="r1", **cut):
    wire = Wire(answers(sites), **cut)
    return Run(study, wire, name).conduct(), wire


def plain_total(folder, sites, study, names, step="tables"):
    """The exact total of the same hospitals, added in the plain by simulated doors without noise."""
    total = 0
    for name in names:
        site = make_site(folder / name, study, small_table(300, NAMES.index(name)), name=name, noise=False)
        (site.path / "site.key").write_bytes((sites[name].path / "site.key").read_bytes())
        reply = SiteService(site, simulated=True).answer(Request("p", study.digest, step, State()))
        total = total + integers(reply.arrays)
    return total


def tables_total(sites, study=SHORT, name="r1", **cut):
    """Total of a run's first step, as its family sees it."""
    seen = []

    class Watching(Run):
        def _exchange(self, priced, state):
            seen.append(super()._exchange(priced, state))
            return seen[-1]

    wire = Wire(answers(sites), **cut)
    watching = Watching(study, wire, name)
    watching.conduct()
    return seen[0], wire, watching


def test_a_run_of_masked_sums_ends_and_its_books_agree(tmp_path):
    sites = masking_sites(tmp_path, STUDY, NAMES)
    outcome, wire = run(sites, STUDY)
    assert outcome.private and outcome.sites == list(NAMES) and all(not r.missing for r in outcome.rounds)
    assert outcome.bytes_per_site == outcome.plan.bytes_per_site
    for name, site in sites.items():
        door = Door(site)
        mine = [e["kind"] for e in door.ledger.chain.entries() if e["run"] == "r1"]
        assert mine == ["reserve", "settle"] * len(priced_plan(STUDY).steps)
        log = door.audit.chain.entries()
        left = [e["arrays"]["sum"] for e in log if e["kind"] == "released"]
        sent = [r.arrays["sum"] for s, q, r in wire.heard if s == name and q.exchange == "mask"]
        assert left == [describe(a) for a in sent], "the audit log holds the hash of what left, which is masked"
        spoken = [e["exchange"] for e in log if e["kind"] == "message"]
        assert spoken == ["advert", "share", "mask", "confirm", "unmask"] * len(priced_plan(STUDY).steps)


def test_the_total_is_that_of_plain_addition(tmp_path):
    sites = masking_sites(tmp_path / "a", SHORT, NAMES, noise=False)
    total, _, run_ = tables_total(sites)
    assert (total.arrays["sum"] == plain_total(tmp_path / "b", sites, SHORT, NAMES)).all()
    assert run_.private is False and total.noise_std == 0, "a run without noise says so"


def test_a_sum_of_more_bytes_than_may_leave_does_not_begin(tmp_path):
    """Messages are asked for before they are made, with all that the sum has still to send."""
    sites = masking_sites(tmp_path / "a", SHORT, NAMES, epsilon_lifetime=100)
    outcome, _ = run(sites)
    planned, spoken = run_bytes(SHORT, sites["east"].sites)
    left = {n: sum(size for _, size in sent(Door(s).audit.chain.entries())) for n, s in sites.items()}
    assert left["east"] == planned == max(left.values()), "to the byte; sites of longer names say a little less"
    assert planned - spoken == outcome.bytes_per_site
    with pytest.raises(MedsynxError, match=f"up to {planned:,} bytes"):
        masking_sites(tmp_path / "b", SHORT, NAMES, bytes_per_study=planned - 1)
    assert run(masking_sites(tmp_path / "c", SHORT, NAMES, bytes_per_study=planned))[0].rounds[-1].missing == {}
    whole = step_bytes(full_plan(SHORT)[0], sites["east"].sites, "advert")
    for limit, first in ((whole - 1, "policy-refused"), (whole, None)):
        site = masking_sites(tmp_path / f"{limit}", SHORT, NAMES, bytes_per_day=limit)["east"]
        ask = [SiteService(site).answer(Request("r1", SHORT.digest, "tables", State(), "advert")) for _ in range(2)]
        assert ask[0].refusal == first
        others = Request("r2", SHORT.digest, "tables", State(), "advert")
        assert SiteService(site).answer(others).refusal == "policy-refused", "what was said already is counted"
        kinds = [e["kind"] for e in Door(site).audit.chain.entries() if e["kind"] in ("message", "again")]
        assert kinds == ([] if first else ["message"]), "nor does what was said once leave again"


@pytest.mark.parametrize(
    "cut",
    [
        {"before": {"south": "advert"}},
        {"before": {"south": "share"}},
        {"before": {"south": "mask"}},
        {"after": {"south": "mask"}},
    ],
)
def test_a_site_that_drops_out_is_not_in_the_total(tmp_path, cut):
    """Also when its vector was masked and got lost, or came late: it stays hidden, and the others' total is right."""
    sites = masking_sites(tmp_path / "a", SHORT, NAMES, noise=False)
    total, _, run_ = tables_total(sites, **cut)
    assert (total.arrays["sum"] == plain_total(tmp_path / "b", sites, SHORT, ("east", "north", "west"))).all()
    assert run_.rounds[0].missing == {"south": "late" if "after" in cut else "offline"} and total.sites == 3


@pytest.mark.parametrize("exchange", ["confirm", "unmask"])
def test_a_site_that_falls_silent_after_its_vector_came_is_in_the_total(tmp_path, exchange):
    sites = masking_sites(tmp_path / "a", SHORT, NAMES, noise=False)
    total, _, run_ = tables_total(sites, after={"south": exchange})
    assert (total.arrays["sum"] == plain_total(tmp_path / "b", sites, SHORT, NAMES)).all()
    assert run_.rounds[0].missing == {} and total.sites == 4


@pytest.mark.parametrize("exchange", ["advert", "share", "mask", "confirm"])
def test_two_of_four_gone_ends_the_run_by_name(tmp_path, exchange):
    sites = masking_sites(tmp_path, SHORT, NAMES)
    with pytest.raises(QuorumLost) as lost:
        run(sites, before={"south": exchange, "west": exchange})
    assert lost.value.missing == {"south": "offline", "west": "offline"}


def test_the_noise_of_the_total_is_the_priced_one(tmp_path):
    """Three sites' shares make the noise of the plan; a fourth only adds to it. It is there before the mask, inside the door."""
    sites = masking_sites(tmp_path / "a", SHORT, NAMES)
    total, _, _ = tables_total(sites)
    plan = priced_plan(SHORT).find("tables")
    noise = total.arrays["sum"] - plain_total(tmp_path / "b", sites, SHORT, NAMES)
    assert 0.8 < noise.std() / (plan.noise_std * np.sqrt(4 / 3)) < 1.2
    assert total.noise_std == pytest.approx(plan.noise_std * np.sqrt(4 / 3))


def test_one_vector_alone_tells_nothing(tmp_path):
    """What a site sends is uniform; even with every other site's secrets (all boxes and keys of the others) its own mask stays."""
    sites = masking_sites(tmp_path / "a", SHORT, NAMES, noise=False)
    _, wire, _ = tables_total(sites)
    sent = next(r.arrays["sum"] for s, q, r in wire.heard if s == "east" and q.exchange == "mask")
    counts = np.bincount(sent[:, -1], minlength=256)  # the top byte of a plain vector is always 0 or 255
    expected = len(sent) / 256
    assert ((counts - expected) ** 2).sum() / expected < 255 + 6 * np.sqrt(2 * 255)
    plain = RING.encode(plain_total(tmp_path / "b", sites, SHORT, ["east"]))
    assert np.count_nonzero(RING.unpack(sent) == plain) <= 1


def test_a_site_without_the_protocol_or_a_plain_request_gives_nothing(tmp_path):
    """The coordinator cannot ask for a plain vector, nor mask a step that is none."""
    sites = masking_sites(tmp_path, SHORT, NAMES)
    service = SiteService.open(sites["east"].path)
    assert service.answer(Request("r", SHORT.digest, "tables", State())).refusal == "policy-refused"
    assert Door(sites["east"]).ledger.chain.entries() == []
    local = parse_study(RAW_STUDY)
    other = make_site(tmp_path / "local", local, small_table(300, 1))
    asked = SiteService.open(other.path).answer(Request("r", local.digest, "tables", State(), "advert"))
    assert asked.refusal == "policy-refused"
    assert service.answer(Request("r", SHORT.digest, "tables", State(), "reveal")).refusal == "secure-sum-refused"


def test_a_vector_cannot_be_had_twice_whatever_restarts(tmp_path):
    """A second mask request is refused before a record is touched, by another process too, and the ledger holds one charge."""
    sites = masking_sites(tmp_path, SHORT, NAMES)
    _, wire = run(sites)
    for exchange in ("advert", "share", "mask", "confirm", "unmask"):
        (again,) = [q for s, q, _ in wire.heard if s == "east" and q.exchange == exchange and q.step == "tables"]
        assert SiteService.open(sites["east"].path).answer(again).refusal == "secure-sum-refused"
    refused = [e["code"] for e in Door(sites["east"]).audit.chain.entries() if e["kind"] == "refused"]
    assert refused == ["secure-sum-refused"] * 5, "and each attempt is written down"
    reserved = [
        e for e in Door(sites["east"]).ledger.chain.entries() if e["kind"] == "reserve" and e["step"] == "tables"
    ]
    assert len(reserved) == 1


def test_a_crash_while_masking_fails_closed_and_stays_spent(tmp_path, monkeypatch):
    sites = masking_sites(tmp_path, SHORT, NAMES)
    real = SiteService.table

    def crash(self, permit):
        if self.folder.path.name == "south":
            raise RuntimeError("the child died")
        return real(self, permit)

    monkeypatch.setattr(SiteService, "table", crash)
    wire = Wire(answers(sites))
    outcome = Run(SHORT, wire, "r1").conduct()
    assert outcome.rounds[0].missing == {"south": "site-failed"}
    monkeypatch.setattr(SiteService, "table", real)
    (again,) = [q for s, q, _ in wire.heard if s == "south" and q.exchange == "mask" and q.step == "tables"]
    assert SiteService.open(sites["south"].path).answer(again).refusal == "secure-sum-refused"
    assert Door(sites["south"]).ledger.spent("table", 1e-5) > 0.3


def test_secrets_lie_under_0600_and_are_gone_afterwards(tmp_path, monkeypatch):
    sites = masking_sites(tmp_path, SHORT, NAMES)
    secrets_seen: list[bytes] = []
    real = sessions.Session.accept

    def note(self, told, sign):
        secrets_seen.extend(self.state[k].encode() for k in ("own", "mask_key", "box_key"))
        secrets_seen.extend(x.encode() for both in self.state["held"].values() for x in both)
        return real(self, told, sign)

    monkeypatch.setattr(sessions.Session, "accept", note)
    run(sites)
    assert len(secrets_seen) > 30
    for site in sites.values():
        file = site.path / "secure_sum.sqlite"
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600 and not list(site.path.glob("secure_sum.sqlite-*"))
        assert stat.S_IMODE(os.stat(site.path / "identity.pem").st_mode) == 0o600
        content = file.read_bytes()
        assert b"done" in content and not any(s in content for s in secrets_seen)


@pytest.mark.parametrize("asked", [True, False])
def test_an_abandoned_session_is_forgotten_after_a_day(tmp_path, monkeypatch, asked):
    """Whatever is asked next and whether or not it is refused; also when nothing is: the agent sees to it."""
    sites = masking_sites(tmp_path, SHORT, NAMES)
    with pytest.raises(QuorumLost):
        run(sites, before={"south": "confirm", "west": "confirm"})
    file = sites["west"].path / "secure_sum.sqlite"
    assert b"held" in file.read_bytes()
    now = time.time()
    monkeypatch.setattr(sessions.time, "time", lambda: now + sessions.KEEP_SECONDS + 1)
    if asked:
        late = Request("r1", SHORT.digest, "tables", State(), "confirm")
        assert SiteService.open(sites["west"].path).answer(late).refusal == "secure-sum-refused"
    else:
        old = sites["west"].path / "runs" / "r1.answer"
        os.utime(old, (0, 0))
        Pulse(sites["west"]).beat(Supervisor())
        assert not old.exists()
    assert b"held" not in file.read_bytes()


def test_a_restored_session_answers_nothing_that_the_audit_log_holds_and_is_given_up_when_the_books_are_acknowledged(
    tmp_path,
):
    """As it was before its answers it would sign other survivors, and so give the second share of a site that is gone from them."""
    sites, old = masking_sites(tmp_path, SHORT, NAMES), tmp_path / "old"

    class Keeping(Wire):
        def _one(self, request, site, deadline_seconds):
            answer = super()._one(request, site, deadline_seconds)
            if (site, request.step, request.exchange) == ("east", "tables", "mask"):
                shutil.copytree(sites["east"].path, old)
            return answer

    wire = Keeping(answers(sites))
    Run(SHORT, wire, "r1").conduct()
    (asked,) = [q for s, q, _ in wire.heard if s == "east" and q.exchange == "confirm" and q.step == "tables"]
    signatures = {s: asked.message["signatures"][s] for s in ("north", "west")}
    again = replace(asked, message={"survivors": ["east", "north", "west"], "signatures": signatures})
    assert SiteService.open(sites["east"].path).answer(again).refusal == "secure-sum-refused"
    shutil.copy(old / "secure_sum.sqlite", sites["east"].path)
    assert SiteService.open(sites["east"].path).answer(again).refusal == "secure-sum-refused", "the audit log remembers"
    shutil.copytree(old, tmp_path / "control")
    told = SiteService.open(tmp_path / "control").answer(again)
    assert told.refusal is None, "with log and witness brought back too only the officer can know"
    done = CliRunner().invoke(app, ["acknowledge", "--dir", str(old), "--yes"])
    assert done.exit_code == 0 and "secure sums given up: 1" in done.output
    assert SiteService.open(old).answer(again).refusal == "secure-sum-refused"
    assert b"held" not in (old / "secure_sum.sqlite").read_bytes(), "and its secrets are gone"


def test_spoilt_sessions_are_named_with_their_remedy(tmp_path, caplog):
    """It is not to put an old copy back, which might answer again."""
    site = masking_sites(tmp_path, SHORT, NAMES)["east"]
    advert, file = Request("r", SHORT.digest, "tables", State(), "advert"), site.path / "secure_sum.sqlite"
    file.write_bytes(b"spoilt" * 2000)
    file.chmod(0o600)
    assert SiteService.open(site.path).answer(advert).refusal == "secure-sum-refused" and "is damaged" in caplog.text
    done = CliRunner().invoke(app, ["acknowledge", "--dir", str(site.path), "--yes"])
    assert isinstance(done.exception, MedsynxError) and "no older copy" in str(done.exception.hint)
    file.unlink()
    assert SiteService.open(site.path).answer(advert).refusal is None


def test_a_roster_other_than_the_approved_one_is_refused(tmp_path):
    sites = masking_sites(tmp_path, SHORT, NAMES)
    service, file = SiteService.open(sites["east"].path), sites["east"].path / "roster.json"
    advert = Request("r", SHORT.digest, "tables", State(), "advert")
    kept = json.loads(file.read_text())
    for spoilt in ({s: k for s, k in kept.items() if s != "west"}, {**kept, "west": kept["south"]}, {"east": 3}, "x"):
        file.write_text(json.dumps(spoilt))
        assert service.answer(advert).refusal == "roster-mismatch"
    file.unlink()
    assert service.answer(advert).refusal == "roster-mismatch"
    file.write_text(json.dumps(kept))
    assert service.answer(advert).refusal is None
    write_roster(sites["east"].path, {s: bytes([k] * 32) for k, s in enumerate(NAMES)})
    sites["east"].approve(SHORT, "table")
    assert service.answer(advert).refusal == "roster-mismatch", "this site's own key must be in it"


def test_a_site_without_a_roster_or_with_an_open_key_takes_no_part(tmp_path):
    alone = make_site(tmp_path / "alone", SHORT, small_table(300, 1))
    advert = Request("r", SHORT.digest, "tables", State(), "advert")
    assert SiteService.open(alone.path).answer(advert).refusal == "roster-mismatch"
    sites = masking_sites(tmp_path, SHORT, NAMES)
    (sites["east"].path / "identity.pem").chmod(0o644)
    assert SiteService.open(sites["east"].path).answer(advert).refusal == "site-failed"


def test_a_coordinator_that_forges_a_site_is_refused_by_all(tmp_path):
    """A key of its own in the place of a site's: everybody who is told refuses, and the run ends by name."""
    sites = masking_sites(tmp_path, SHORT, NAMES)

    class Forging(Wire):
        def _one(self, request, site, deadline_seconds):
            if request.exchange == "share" and site != "west":
                request.message["adverts"]["west"] = request.message["adverts"]["west"] | {
                    "box_key": request.message["adverts"]["east"]["mask_key"]
                }
            return super()._one(request, site, deadline_seconds)

    with pytest.raises(QuorumLost) as lost:
        Run(SHORT, Forging(answers(sites)), "r1").conduct()
    assert set(lost.value.missing.values()) == {"secure-sum-refused"}


def test_a_wrong_share_is_noticed(tmp_path):
    sites = masking_sites(tmp_path, SHORT, NAMES)

    class Spoiling(Wire):
        def _one(self, request, site, deadline_seconds):
            answer = super()._one(request, site, deadline_seconds)
            if request.exchange == "unmask" and site == "east":
                answer.reply.message["seeds"]["west"] = answer.reply.message["seeds"]["south"]
            return answer

    with pytest.raises(Exception, match="wrong share of west") as failed:
        Run(SHORT, Spoiling(answers(sites)), "r1").conduct()
    assert failed.value.code == "reply-invalid"


def test_a_malformed_vector_is_left_out(tmp_path):
    sites = masking_sites(tmp_path, SHORT, NAMES)

    class Short(Wire):
        def _one(self, request, site, deadline_seconds):
            answer = super()._one(request, site, deadline_seconds)
            if request.exchange == "mask" and site == "north":
                answer.reply.arrays["sum"] = answer.reply.arrays["sum"][:-1]
            return answer

    outcome = Run(SHORT, Short(answers(sites)), "r1").conduct()
    assert outcome.rounds[0].missing == {"north": "reply-invalid"}


def test_hospital_it_installs_the_roster_by_command(tmp_path):
    sites = {n: make_site(tmp_path / n, SHORT, small_table(100, 1), name=n, approve=False).path for n in NAMES[:3]}

    def medsynx(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)

    roster = {}
    for folder in sites.values():
        roster |= json.loads(medsynx("identity", "--dir", folder).output)
    (tmp_path / "all.json").write_text(json.dumps(roster))
    (tmp_path / "others.json").write_text(json.dumps({s: k for s, k in roster.items() if s != "east"}))
    assert (
        medsynx("roster", "--dir", sites["east"], tmp_path / "others.json", "--yes").exception.code == "roster-mismatch"
    )
    assert medsynx("roster", "--dir", sites["east"], tmp_path / "all.json", "--yes").exit_code == 0
    assert json.loads((sites["east"] / "roster.json").read_text()) == dict(sorted(roster.items()))
