"""The door's promises: nothing leaves that was not approved, planned, paid for, noised and written down."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest

import site_agent
from evaluation.programme import priced_plan
from medsynx.errors import MedsynxError
from medsynx.generators.base import Contribution, State
from medsynx.plan import Plan
from medsynx.secure_sum.noise import discrete_gaussian
from medsynx.secure_sum.ring import RING
from medsynx.study import parse_study
from medsynx.wire import Request
from site_agent import door as door_module
from site_agent.audit import Audit
from site_agent.door import Cargo, Door
from site_agent.policy import SiteFolder
from site_agent.service import SiteService
from tests.conftest import small_table
from tests.helpers import add_dataset, integers, make_site


@pytest.fixture
def site(tmp_path, study) -> SiteFolder:
    return make_site(tmp_path / "north", study, small_table(400, 1))


def refusal(call) -> str:
    with pytest.raises(MedsynxError) as caught:
        call()
    return caught.value.code


def ask(site: SiteFolder, study, step="tables", run="run-1", state=State(), **how):
    return SiteService(site, **how).answer(Request(run, study.digest, step, state))


def test_an_approved_step_leaves_noised_charged_and_audited(site, study):
    reply = ask(site, study)
    assert reply.refusal is None and reply.private
    sent, plan = reply.arrays["sum"], priced_plan(study)
    assert sent.dtype == np.uint8 and sent.shape == (plan.find("tables").step.size, RING.width)
    door = Door(site)
    assert [e["kind"] for e in door.ledger.chain.entries()] == ["reserve", "noted", "settle"]
    approved, record = door.audit.chain.entries()
    assert (approved["kind"], record["kind"]) == ("study-approved", "released")
    assert record["arrays"]["sum"] == door_module.describe(sent), "the audit log holds the hash of exactly what left"


def test_the_noise_that_leaves_has_the_priced_size(tmp_path, study):
    """Two sites with the same rows differ by twice the priced variance; with noise off they are equal."""
    table = small_table(300, 2)
    for noise in (True, False):
        replies = [
            integers(ask(make_site(tmp_path / f"{noise}{k}", study, table, noise=noise), study).arrays)
            for k in range(2)
        ]
        if not noise:
            # different site keys split the patients differently, so compare the totals of one table
            assert abs(replies[0][:7].sum() - replies[1][:7].sum()) < 0.2 * replies[0][:7].sum()
    plan = priced_plan(study).find("tables")
    exact = SiteService(make_site(tmp_path / "exact", study, table, noise=False)).answer(
        Request("r", study.digest, "tables", State())
    )
    folder = tmp_path / "noisy"
    noisy_site = make_site(folder, study, table)
    (folder / "site.key").chmod(0o600)
    (folder / "site.key").write_bytes((tmp_path / "exact" / "site.key").read_bytes())
    noisy = ask(noisy_site, study)
    difference = integers(noisy.arrays) - integers(exact.arrays)
    assert not exact.private and noisy.private
    assert 0.8 < difference.std() / plan.noise_std < 1.2


def test_noise_is_never_the_same_twice():
    np.random.seed(0)
    one = discrete_gaussian(1000.0, 200)
    np.random.seed(0)
    two = discrete_gaussian(1000.0, 200)
    assert (one != two).mean() > 0.9
    assert abs(discrete_gaussian(1000.0, 20_000).std() / 1000 - 1) < 0.05


def test_secure_sum_shares_carry_a_part_of_the_variance(tmp_path, raw_study):
    raw_study["privacy"]["trust"] = "secure-sum"
    raw_study["rounds"]["quorum"] = 4
    study = parse_study(raw_study)
    replies = []
    for k, noise in enumerate((True, False)):
        site = make_site(tmp_path / str(k), study, small_table(300, 2), noise=noise)
        site.path.joinpath("site.key").write_bytes(b"k" * 32)
        replies.append(integers(ask(site, study, simulated=True).arrays))
    std = (replies[0] - replies[1]).std()
    assert 0.8 < std / (priced_plan(study).find("tables").noise_std / 2) < 1.2


def test_a_deployed_site_lets_no_plain_vector_of_a_secure_sum_out(tmp_path, raw_study):
    raw_study["privacy"]["trust"] = "secure-sum"
    study = parse_study(raw_study)
    site = make_site(tmp_path / "n", study, small_table(300, 2))
    assert ask(site, study).refusal == "policy-refused"
    assert Door(site).ledger.chain.entries() == []


def test_what_was_not_approved_or_planned_is_refused(site, study, raw_study):
    other = parse_study({**raw_study, "title": "changed"})
    assert ask(site, other).refusal == "study-not-approved"
    assert ask(site, study, step="more").refusal == "step-not-planned"
    assert ask(site, study, run="../../etc").refusal == "step-not-planned"
    assert ask(site, study).refusal is None
    assert ask(site, study, state=State({}, {"other": 1})).refusal == "step-replayed"
    assert ask(site, study, run="run-2").refusal == "budget-exceeded"
    refused = [e["code"] for e in Door(site).audit.chain.entries() if e["kind"] == "refused"]
    assert refused == ["study-not-approved", "step-not-planned", "step-replayed", "budget-exceeded"]


def test_an_approval_that_was_edited_is_no_approval(site, study):
    file = next((site.path / "approvals").glob("*.json"))
    record = json.loads(file.read_text())
    record["study"]["privacy"]["epsilon"] = 90
    file.write_text(json.dumps(record))
    assert ask(site, study).refusal == "study-not-approved"
    for digest in ("", "../../site", "z" * 64):
        assert refusal(lambda d=digest: site.approval(d)) == "study-not-approved"


def test_over_budget_is_refused_before_the_first_batch(tmp_path, study, monkeypatch):
    """The table is not even read."""
    site = make_site(tmp_path / "n", study, small_table(300, 1), epsilon_lifetime=study.privacy.epsilon * 0.9)
    monkeypatch.setattr("site_agent.service.load_dataset", lambda *_, **__: pytest.fail("a record was touched"))
    assert ask(site, study).refusal == "budget-exceeded"
    with pytest.raises(MedsynxError, match=r"epsilon from 0 to 2, the limit is 1\.8"):
        Door(site).admit(study.digest, "run-1", "tables")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"epsilon_per_study": 0.5}, "epsilon 2 is above 0.5 a study"),
        ({"families": ("dp-gan",)}, "family marginals"),
        ({"trust": ("secure-sum",)}, "trust mode local"),
        ({"delta": 1e-7}, "delta 1e-05"),
    ],
)
def test_the_policy_holds_at_approval_and_at_the_door(tmp_path, study, limits, words):
    site = make_site(tmp_path / "n", study, small_table(300, 1), approve=False, **limits)
    with pytest.raises(MedsynxError, match=words):
        site.approve(study, "table")
    open_site = make_site(tmp_path / "open", study, small_table(300, 1))
    (open_site.path / "site.yaml").write_text((site.path / "site.yaml").read_text())
    assert ask(open_site, study).refusal == "policy-refused", "a policy made stricter after the approval counts"


def test_a_failure_after_the_reservation_still_counts(site, study, monkeypatch):
    monkeypatch.setattr("site_agent.service.load_dataset", lambda *a, **k: 1 / 0)
    assert ask(site, study).refusal == "site-failed"
    door = Door(site)
    assert door.ledger.spent("table", 1e-5) > 0.5
    assert [e["kind"] for e in door.audit.chain.entries()] == ["study-approved", "refused"], "nothing else left"


def test_what_a_run_keeps_at_the_site_is_for_its_study_and_data_set_alone(tmp_path, raw_study, monkeypatch):
    """The coordinator names runs, and may name two alike."""
    one, two = parse_study({**raw_study, "name": "one"}), parse_study({**raw_study, "name": "two"})
    site = make_site(tmp_path, one, small_table(300, 1), epsilon_lifetime=100)
    add_dataset(site, "other", small_table(300, 2))
    site.approve(two, "table")
    given: list[set[str]] = []

    class Keeping:
        def contribute(self, study, priced, state, patients, keep) -> Contribution:
            given.append(set(keep))
            return Contribution({"sum": np.zeros(priced.step.size, np.int64)}, keep={"critic": np.zeros(1)})

    monkeypatch.setattr("site_agent.service.get_family", lambda name: Keeping())
    for study, run, step in (
        (one, "r1", "tables"),
        (two, "r1", "cliques"),
        (one, "r2", "tables"),
        (one, "r2", "cliques"),
    ):
        assert ask(site, study, step, run).refusal is None
    site.approve(one, "other")
    assert ask(site, one, "tables", "r1", State({}, {"asked": "anew"})).refusal is None
    assert given == [set(), set(), set(), {"critic"}, set()]


def test_a_data_problem_leaves_as_site_failed_only(tmp_path, study):
    """Too few patients, or a broken table, would tell the coordinator something about the patients."""
    few = make_site(tmp_path / "few", study, small_table(25, 1), minimum_patients=100)
    assert ask(few, study).refusal == "site-failed"
    assert [e["code"] for e in Audit(few.path / "audit.sqlite").chain.entries() if e["kind"] == "refused"] == [
        "patients-too-few"
    ], "that bit leaves, and the audit log says so"
    broken = make_site(tmp_path / "broken", study, small_table(300, 1).assign(age="SECRET"))
    reply = ask(broken, study)
    assert reply.refusal == "site-failed" and reply.arrays == {}


def test_values_beyond_the_limit_are_clipped_and_other_shapes_refused(site, study, monkeypatch):
    door = Door(site)
    permit = door.admit(study.digest, "run-1", "tables")
    size = permit.step.step.size
    huge = door.release(permit, Contribution({"sum": np.full(size, 2**60, np.int64)}))
    left = integers(huge.arrays)
    assert np.abs(left - permit.step.step.limit).max() < 8 * permit.step.noise_std
    for wrong in (
        {"sum": np.zeros(size + 1, np.int64)},
        {"sum": np.zeros(size)},
        {"sum": np.zeros(size, np.int64), "x": np.zeros(1)},
    ):
        assert refusal(lambda w=wrong: door.release(permit, Contribution(w))) == "cargo-malformed"


def test_cargo_is_made_by_the_door_alone():
    with pytest.raises(TypeError):
        Cargo({}, key=object())
    makers = [
        path.name
        for path in Path(site_agent.__file__).parent.glob("**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Cargo"
    ]
    assert makers == ["door.py"]


def test_nothing_else_in_the_site_agent_opens_an_outbound_channel():
    """The executor speaks, to its own SuperNode on loopback; SuperNode and membership do, which know no record and are known to nothing that does."""
    outbound = {"socket", "httpx", "requests", "urllib", "http", "smtplib", "ftplib", "aiohttp", "grpc"}
    membership = {"line", "enrolment", "preflight", "membership_cli", "run", "supernode"}
    knowing = {"door", "service", "datasets", "ingest", "images", "ledger", "vault", "secure_sum", "client_app", "deid"}
    knowing |= {"image_files", "image_readers", "vault_images"}
    for path in Path(site_agent.__file__).parent.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for name in names:
                assert name.split(".")[0] not in outbound or path.stem in membership, f"{path.name} imports {name}"
                room, _, part = name.partition(".")
                if room == "site_agent" and path.stem in membership - {"membership_cli"}:
                    assert part.split(".")[0] not in knowing, f"{path.name} imports {name}"
                if room == "site_agent" and path.stem not in membership | {"cli"}:
                    assert part.split(".")[0] not in membership, f"{path.name} imports {name}"
                assert not name.startswith("flwr.supercore.runtime") or path.name == "executor.py"


def test_a_key_others_can_read_stops_the_site(site, study):
    (site.path / "site.key").chmod(0o644)
    assert refusal(site.key) == "key-exposed" and ask(site, study).refusal == "site-failed"


def test_plan_is_an_upper_bound_the_door_recomputes(site, study):
    """What a request says about noise or size is not even part of it: the plan comes from the approved manifest."""
    assert set(Request.__dataclass_fields__) == {"run", "study_digest", "step", "state", "exchange", "message"}
    assert isinstance(priced_plan(study), Plan)


def test_what_left_without_noise_spoils_the_data_set_for_good(tmp_path, study):
    """The ledger's epsilon is true of everything that left, tests included."""
    site = make_site(tmp_path / "n", study, small_table(300, 1), noise=False)
    assert ask(site, study).private is False
    assert Door(site).ledger.spent("table", 1e-5) == float("inf")
    file = site.path / "site.yaml"
    file.write_text(file.read_text().replace("testing_without_noise: true", "testing_without_noise: false"))
    assert ask(site, study, run="run-2").refusal == "budget-exceeded"


def test_a_site_must_allow_the_family_a_student_learns_from(tmp_path, raw_study):
    raw_study["family"] = {"name": "synthcity", "parameters": {"plugin": "arf", "mode": "student"}}
    study = parse_study(raw_study)
    site = make_site(tmp_path / "n", study, small_table(300, 1), approve=False, families=("synthcity",))
    with pytest.raises(MedsynxError, match="family synthcity with marginals is not among synthcity"):
        site.approve(study, "table")
    make_site(tmp_path / "m", study, small_table(300, 1), families=("synthcity", "marginals"))
