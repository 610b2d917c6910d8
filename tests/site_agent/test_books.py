"""Who is in a data set, how old a ledger is, and what the officer reads of both."""

import io
import json
import shutil
import sqlite3
import sys
import tarfile
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from evaluation.federated import HOLDOUT
from evaluation.programme import full_plan
from medsynx.cli import main
from medsynx.errors import MedsynxError
from medsynx.generators.base import State
from medsynx.study import parse_study
from medsynx.wire import Request
from site_agent import books, clock
from site_agent.backup import write_backup
from site_agent.chain import Chain
from site_agent.datasets import split_of
from site_agent.door import Door
from site_agent.ingest import Marks
from site_agent.patients import PatientBook
from site_agent.policy import SiteFolder
from site_agent.service import SiteService
from tests.conftest import RAW_IMAGE_STUDY, small_table, stripes
from tests.helpers import add_dataset, make_site


def named(study_raw: dict, name: str, *, ids: bool = False):
    """A study of this name, with or without a patient id column."""
    columns = {"who": {"type": "patient-id"}, **study_raw["columns"]} if ids else study_raw["columns"]
    return parse_study({**study_raw, "name": name, "columns": columns})


def with_ids(table: pd.DataFrame, first: int) -> pd.DataFrame:
    return table.assign(who=[f"P{first + k:05d}" for k in range(len(table))])


def ask(site: SiteFolder, study, run: str, step: str = "tables") -> str | None:
    return SiteService(site).answer(Request(run, study.digest, step, State())).refusal


def two_data_sets(tmp_path, raw, one, two, *, apart, ids=False):
    """A site that has spent its budget on ``table`` and may run another study on ``other``."""
    first, second = named(raw, "first", ids=ids), named(raw, "second", ids=ids)
    site = make_site(tmp_path / "north", first, one)
    add_dataset(site, "other", two, apart=apart)
    site.approve(second, "other")
    assert ask(site, first, "run-1") is None
    return site, second


def test_the_same_patients_under_another_name_have_no_new_budget(tmp_path, raw_study):
    table = small_table(300, 1)
    site, second = two_data_sets(tmp_path, raw_study, table, table, apart=False)
    assert ask(site, second, "run-2") == "budget-exceeded"


def test_nor_under_the_officers_mistaken_word(tmp_path, raw_study, caplog):
    """The same file, a part of it, or it with more rows: `apart` is checked before anything is computed."""
    table = small_table(300, 1)
    for k, other in enumerate((table, table.sample(80, random_state=1), pd.concat([table, small_table(50, 2)]))):
        site, second = two_data_sets(tmp_path / str(k), raw_study, table, other, apart=True)
        assert ask(site, second, "run-2") == "site-failed", "what records decide is not told"
        assert "table and other" in caplog.text or "other and table" in caplog.text
        assert not [e for e in Door(site).audit.chain.entries() if e["kind"] == "released" and e["run"] == "run-2"]


def test_other_patients_have_a_budget_of_their_own_when_the_officer_says_so(tmp_path, raw_study):
    for k, apart in enumerate((True, False)):
        site, second = two_data_sets(
            tmp_path / str(k), raw_study, small_table(300, 1), small_table(300, 2), apart=apart
        )
        assert ask(site, second, "run-2") == (None if apart else "budget-exceeded")


def test_one_patient_in_common_is_one_too_many_where_patients_have_ids(tmp_path, raw_study):
    """All else about the patient may differ."""
    one = with_ids(small_table(300, 1), 0)
    for k, (first, refused) in enumerate(((300, None), (299, "site-failed"))):
        site, second = two_data_sets(
            tmp_path / str(k), raw_study, one, with_ids(small_table(300, 2), first), apart=True, ids=True
        )
        assert ask(site, second, "run-2") == refused


def test_patients_that_were_never_noted_may_be_anybody(tmp_path, raw_study):
    site, second = two_data_sets(tmp_path, raw_study, small_table(300, 1), small_table(300, 2), apart=True)
    (site.path / "patients.sqlite").unlink()
    assert ask(site, second, "run-2") == "site-failed"


@pytest.mark.parametrize("kept", ["older", "none", "newest"])
def test_a_book_of_patients_that_lacks_some_gives_them_no_second_budget(tmp_path, raw_study, caplog, kept):
    """They were in the data set once and spent its budget; nor does noting those who are left make the book whole."""
    first, second = named(raw_study, "first"), named(raw_study, "second")
    site = make_site(tmp_path / "north", first, small_table(300, 1), epsilon_lifetime=100)
    book, gone = site.path / "patients.sqlite", small_table(300, 2)
    copies = {"none": None}
    for when, table in (("older", small_table(300, 1)), ("newest", pd.concat([small_table(300, 1), gone]))):
        table.to_csv(site.path / "table.csv", index=False)
        assert ask(site, first, f"run-{when}") is None
        copies[when] = book.read_bytes()
    small_table(300, 1).to_csv(site.path / "table.csv", index=False)
    book.unlink()
    if copies[kept]:
        book.write_bytes(copies[kept])
    assert ask(site, first, "run-alone") is None, "a data set that shares its budget with all others runs"
    for name, table in (("gone", gone), ("others", small_table(300, 3))):
        add_dataset(site, name, table)
        study = named(raw_study, name)
        site.approve(study, name)
        allowed = kept == "newest" and name == "others"
        assert ask(site, study, f"run-{name}") == (None if allowed else "site-failed")
    assert ("patients-lost" if kept != "newest" else "patients-shared") in caplog.text
    warned = [w for w in books.summary(site)["warnings"] if "patients of table" in w]
    assert len(warned) == (kept != "newest")
    file = site.path / "site.yaml"
    file.write_text(file.read_text().replace("apart: true", "apart: false"))
    site.approve(second, "gone")
    assert ask(site, second, "run-second") is None, "what the remedy says: one budget for all"


@pytest.mark.parametrize(
    ("book", "told", "named"),
    [("patients", "site-failed", "patients-lost"), ("ledger", "ledger-broken", "ledger-broken")],
)
def test_a_book_that_is_no_database_is_named(tmp_path, study, caplog, book, told, named):
    site = make_site(tmp_path / "north", study, small_table(300, 1), epsilon_lifetime=100)
    assert ask(site, study, "run-1") is None
    file = site.path / f"{book}.sqlite"
    file.write_bytes(b"SQLite format 3\x00" + b"spoilt" * 2000)
    assert ask(site, study, "run-2") == told and f"[{named}]" in caplog.text
    if book == "patients":  # what its remedy says
        file.rename(file.with_suffix(".damaged"))
        assert ask(site, study, "run-2") is None


def test_a_crash_while_patients_are_noted_is_made_good_by_noting_them_again(tmp_path, monkeypatch):
    chain, marks = Chain(tmp_path / "ledger.sqlite"), Marks(frozenset({b"a" * 32}))
    book, real = PatientBook(tmp_path / "patients.sqlite", chain), chain.append

    def crash(*args: object) -> None:
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(chain, "append", crash)
    with pytest.raises(KeyboardInterrupt):
        book.note("table", marks)
    assert book.lacking() == ["table"]
    book.note("table", marks)
    assert book.lacking() == [] and len(chain.entries()) == 1


def test_a_data_set_keeps_what_it_spent_whatever_it_holds_and_whatever_it_is_called(tmp_path, raw_study):
    first = named(raw_study, "first")
    site = make_site(tmp_path / "north", first, small_table(300, 1))
    assert ask(site, first, "run-1") is None
    small_table(300, 9).to_csv(site.path / "table.csv", index=False)
    assert ask(site, first, "run-2") == "budget-exceeded"
    text = (site.path / "site.yaml").read_text()
    (site.path / "site.yaml").write_text(text.replace("  table:\n", "  renamed:\n"))
    second = named(raw_study, "second")
    site.approve(second, "renamed")
    assert ask(site, second, "run-3") == "budget-exceeded"


@pytest.mark.parametrize("ids", [False, True])
def test_records_without_ids_may_change_sides_when_the_file_changes(tmp_path, raw_study, ids):
    """The holdout step is parallel to the others only while it sees the same split; patients with ids keep theirs."""
    study, table, spent = named(raw_study, "first", ids=ids), with_ids(small_table(300, 1), 0), []
    for change in (False, True):
        shown = table if ids else table.drop(columns="who")
        site = make_site(tmp_path / str(change), study, shown, epsilon_lifetime=100)
        Door(site).admit(study.digest, "run-1", "tables")
        shown.iloc[int(change) :].to_csv(site.path / "table.csv", index=False)
        Door(site).admit(study.digest, "run-1", HOLDOUT)
        spent.append(Door(site).ledger.spent("table", 1e-5))
    assert spent[1] == pytest.approx(spent[0]) if ids else spent[1] > 1.2 * spent[0]


def test_a_file_that_changes_under_a_step_is_not_computed_on(tmp_path, study, monkeypatch):
    site = make_site(tmp_path / "n", study, small_table(300, 1))
    from site_agent import service

    real = service.load_dataset

    def swap(*args, **how):
        small_table(300, 2).to_csv(site.path / "table.csv", index=False)
        return real(*args, **how)

    monkeypatch.setattr("site_agent.service.load_dataset", swap)
    assert ask(site, study, "run-1") == "site-failed"
    assert not [e for e in Door(site).audit.chain.entries() if e["kind"] == "released"]


def test_images_are_told_apart_too(tmp_path):
    image = {**RAW_IMAGE_STUDY["image"], "classes": RAW_IMAGE_STUDY["image"]["classes"][::-1]}
    study, other = parse_study(RAW_IMAGE_STUDY), parse_study({**RAW_IMAGE_STUDY, "name": "other", "image": image})
    site = make_site(tmp_path / "n", study, small_table(1, 1), approve=False)
    images, labels = stripes(200, 1)
    for name in ("table", "again"):
        np.savez(site.path / f"{name}.npz", images=images, labels=np.array(study.image.classes)[labels])
    text = (site.path / "site.yaml").read_text().replace("path: table.csv", "path: table.npz")
    text = text.replace("limits:\n", "  again: {path: again.npz, apart: true}\nlimits:\n").replace(
        "- local", "- secure-sum"
    )
    (site.path / "site.yaml").write_text(text)
    site.approve(study, "table")
    site.approve(other, "again")
    answers = [
        SiteService(site, simulated=True).answer(Request(run, s.digest, full_plan(s)[0].name, State())).refusal
        for run, s in (("run-1", study), ("run-2", other))
    ]
    assert answers == [None, "site-failed"]


def test_a_folder_of_pictures_is_a_data_set_of_its_pictures(tmp_path):
    from PIL import Image

    study = parse_study(RAW_IMAGE_STUDY)
    site = make_site(tmp_path / "n", study, small_table(1, 1), approve=False)
    for k, (image, label) in enumerate(zip(*stripes(40, 1), strict=True)):
        place = site.path / "pictures" / ["flat", "upright"][label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{k}.png")
    file = site.path / "site.yaml"
    file.write_text(file.read_text().replace("path: table.csv", "path: pictures"))
    site.approve(study, "table")
    before = split_of(site, "table", study)
    go = SiteService(site, simulated=True).answer
    assert go(Request("run-1", study.digest, full_plan(study)[0].name, State())).refusal is None
    with sqlite3.connect(site.path / "patients.sqlite") as db:
        assert db.execute("SELECT count(*) FROM mark WHERE kind = 'id'").fetchone() == (40,)
    Image.fromarray(stripes(1, 9)[0][0]).save(site.path / "pictures" / "flat" / "new.png")
    assert split_of(site, "table", study) != before


def rows(chain: Chain, count: int, word: str = "row") -> None:
    for k in range(count):
        chain.append({"kind": "reserve", "word": f"{word} {k}"})


def stored(chain: Chain) -> list[tuple]:
    with sqlite3.connect(chain.path) as db:
        return db.execute("SELECT id, at, body, previous, hash FROM entry ORDER BY id").fetchall()


def code(call) -> str:
    with pytest.raises(MedsynxError) as caught:
        call()
    return caught.value.code


def put_back(folder):
    """A ledger of two rows, put back over one of five, and the chain that wrote these."""
    path = folder / "ledger.sqlite"
    chain = Chain(path)
    rows(chain, 2)
    shutil.copy(path, folder / "old")
    rows(chain, 3, "later")
    shutil.copy(folder / "old", path)
    return path, chain


def test_an_older_ledger_is_refused_until_it_is_acknowledged_and_then_refunds_nothing(tmp_path):
    path, _ = put_back(tmp_path)
    again = Chain(path)
    assert again.behind_witness() and len(again.entries()) == 2, "it can be read"
    assert code(lambda: again.append({"word": "more"})) == "ledger-broken"
    assert again.acknowledge("officer") == 3
    found = again.entries()
    assert [e.get("word") for e in found[2:5]] == ["later 0", "later 1", "later 2"] and found[5]["by"] == "officer"
    again.append({"kind": "reserve", "word": "more"})
    assert not again.behind_witness() and len(again.witness.rows()[0]) == 7


def test_a_damaged_witness_gives_back_what_can_be_read_and_is_kept(tmp_path):
    path, chain = put_back(tmp_path)
    lines = chain.witness.path.read_bytes().split(b"\n")
    lines[2] = lines[2][:30]
    chain.witness.path.write_bytes(b"\n".join(lines))
    again = Chain(path)
    assert code(lambda: again.append({"word": "more"})) == "ledger-broken"
    assert again.acknowledge("officer") == 2
    assert [e["word"] for e in again.entries() if "word" in e] == ["row 0", "row 1", "later 1", "later 2"]
    assert chain.witness.path.with_suffix(".damaged").read_bytes() == b"\n".join(lines)
    rows(again, 1)


def test_a_ledger_that_is_gone_with_its_witness_does_not_begin_at_zero(tmp_path, study):
    """What left is in the audit log still."""
    site = make_site(tmp_path / "n", study, small_table(300, 1))
    request = Request("run-1", study.digest, "tables", State())
    assert SiteService(site).answer(request).refusal is None
    for path in (site.path / "ledger.sqlite", site.path / "witness" / "ledger.jsonl"):
        path.unlink()
    again = Request("run-2", study.digest, "tables", State())
    assert SiteService(site).answer(again).refusal == "ledger-broken"


@pytest.mark.parametrize("gone", ["ledger.sqlite", "witness"])
def test_losing_one_copy_stops_the_site_too(tmp_path, gone):
    chain = Chain(tmp_path / "ledger.sqlite")
    rows(chain, 3)
    if gone == "witness":
        shutil.rmtree(tmp_path / gone)
    else:
        (tmp_path / gone).unlink()
    again = Chain(tmp_path / "ledger.sqlite")
    assert code(lambda: rows(again, 1)) == "ledger-broken"
    again.acknowledge("officer")
    rows(again, 1)
    assert [e["word"] for e in again.entries() if "word" in e] == ["row 0", "row 1", "row 2", "row 0"]


def test_a_crash_between_the_two_copies_is_made_good_and_a_torn_line_too(tmp_path):
    chain = Chain(tmp_path / "ledger.sqlite")
    rows(chain, 3)
    witness = tmp_path / "witness" / "ledger.jsonl"
    whole = witness.read_bytes()
    witness.write_bytes(whole[:-20])
    rows(chain, 1, "next")
    copied, sound = chain.witness.rows()
    assert sound and [r[0] for r in copied] == [1, 2, 3, 4] and copied == stored(chain)
    witness.write_bytes(whole[: len(whole) // 2])
    assert code(lambda: rows(chain, 1)) == "ledger-broken", "two rows are more than a crash can lose"


def test_a_spoilt_row_or_file_is_named_with_its_remedy(tmp_path, study):
    site = make_site(tmp_path / "n", study, small_table(300, 1), epsilon_lifetime=100)
    assert ask(site, study, "run-1") is None
    with sqlite3.connect(site.path / "ledger.sqlite") as db:
        db.executescript(
            "DROP TRIGGER no_update; UPDATE entry SET body = replace(body, 'gaussian', 'gaussiam') WHERE id = 1"
        )
    assert ask(site, study, "run-2") == "ledger-broken"
    shown = medsynx(site, "ledger")
    assert shown[0] == 35 and "entry 1 is not the one" in shown[1] and "acknowledge" in shown[1]
    (site.path / "ledger.sqlite").write_bytes(b"SQLite format 3\x00" + b"spoilt" * 2000)
    assert medsynx(site, "ledger")[0] == 35
    (site.path / "ledger.sqlite").unlink()
    assert medsynx(site, "acknowledge", "--yes")[0] == 0
    assert ask(site, study, "run-2") is None
    assert len(Door(site).ledger.chain.entries()) == 6, (
        "three of run-1 from the witness, the acknowledgement, two of run-2"
    )


def medsynx(site: SiteFolder, *words: str) -> tuple[int, str]:
    """The command line in this process: exit status, and all that was written."""
    said = io.StringIO()
    before, sys.argv = sys.argv, ["medsynx", "site", words[0], "--dir", str(site.path), *words[1:]]
    try:
        with redirect_stdout(said), redirect_stderr(said):
            main()
    except SystemExit as end:
        return int(end.code or 0), said.getvalue()
    finally:
        sys.argv = before
    return 0, said.getvalue()


def test_a_backup_brings_a_site_back_and_refunds_nothing(tmp_path, study):
    site = make_site(tmp_path / "n", study, small_table(300, 1))
    file = tmp_path / "site.tar"
    Door(site)
    write_backup(site.path, file)
    assert file.stat().st_mode & 0o077 == 0 and code(lambda: write_backup(site.path, file)) == "file-exists"
    assert ask(site, study, "run-1") is None
    with tarfile.open(file) as tar:
        assert not [n for n in tar.getnames() if "witness" in n or "secure_sum" in n or "runs" in n]
        tar.extractall(site.path, filter="data")
    assert ask(site, study, "run-2") == "ledger-broken"
    assert "acknowledge" in json.loads(medsynx(site, "ledger", "--json")[1])["warnings"][-1]
    assert medsynx(site, "acknowledge", "--yes", "--by", "nobody")[0] == 31
    assert medsynx(site, "acknowledge", "--yes")[0] == 0
    assert ask(site, study, "run-2") == "budget-exceeded"


def test_a_backup_holds_all_that_a_site_runs_with(tmp_path, study):
    """What `site run` reads, and whom it belongs to: as root it is unpacked for the agent's account."""
    site = make_site(tmp_path / "n", study, small_table(300, 1))
    Door(site)
    joined = {"enrolment.json", "ca.pem", "node.key", "executor.secret", "identity.pem"}
    for name in joined:
        (site.path / name).write_text("{}")
    write_backup(site.path, tmp_path / "site.tar")
    owner = site.path.stat()
    with tarfile.open(tmp_path / "site.tar") as tar:
        assert joined | {"site.yaml", "site.key", "ledger.sqlite", "audit.sqlite", "approvals"} <= set(tar.getnames())
        assert {(m.uid, m.gid, m.uname) for m in tar} == {(owner.st_uid, owner.st_gid, "")}


def test_a_fresh_machine_with_an_old_backup_waits_for_its_officer(tmp_path, study):
    site = make_site(tmp_path / "n", study, small_table(300, 1), epsilon_lifetime=100)
    assert ask(site, study, "run-1") is None
    write_backup(site.path, tmp_path / "site.tar")
    new = tmp_path / "new"
    new.mkdir()
    with tarfile.open(tmp_path / "site.tar") as tar:
        tar.extractall(new, filter="data")
    shutil.copy(site.path / "table.csv", new)
    assert ask(SiteFolder(new), study, "run-2") == "ledger-broken"
    assert medsynx(SiteFolder(new), "acknowledge", "--yes")[0] == 0
    assert ask(SiteFolder(new), study, "run-2") is None


def test_the_ledger_tells_where_the_clock_was_set(tmp_path, study, monkeypatch):
    site = make_site(tmp_path / "n", study, small_table(300, 1), epsilon_lifetime=100)
    book, noon = Chain(site.path / "ledger.sqlite"), datetime(2026, 1, 5, 12, tzinfo=UTC)
    for minutes, boot, up in ((0, "a", 0), (10, "a", 600), (3, "a", 660), (90, "a", 720), (5, "b", 3)):
        now = clock.Reading(noon + timedelta(minutes=minutes), boot, up)
        monkeypatch.setattr(clock, "read", lambda now=now: now)
        book.append({"kind": "settle", "dataset": "table", "run": "r", "step": "s"})
    warnings = books.summary(site)["warnings"]
    assert [w.split("clock was ")[1] for w in warnings[:3]] == [
        "set back by 480 seconds",
        "set forward by 5,160 seconds",
        "set back by 5,100 seconds",
    ]
    assert "behind this ledger" in warnings[3] and ask(site, study, "run-1") == "policy-refused"
    for chain in (book, Door(site).audit.chain):
        chain.acknowledge("officer")
    assert ask(site, study, "run-1") is None


def test_ledger_shows_a_table_and_draws_a_static_chart(tmp_path, study):
    site = make_site(tmp_path / "n", study, small_table(300, 1), epsilon_lifetime=100)
    for run in ("run-1", "run-2"):
        assert ask(site, study, run) is None
    chart = tmp_path / "spent.svg"
    shown = medsynx(site, "ledger", "--plot", str(chart))
    assert shown[0] == 0 and "run-2" in shown[1] and "of 100 spent" in shown[1]
    text = chart.read_text()
    assert text.count("<svg") == 1 and "<script" not in text
    found = json.loads(medsynx(site, "ledger", "--json")[1])
    assert found["spent"]["table"] > found["runs"][0]["epsilon"] > 0 and found["warnings"] == []
    assert [r["handed_over"] for r in found["runs"]] == [1, 1]
