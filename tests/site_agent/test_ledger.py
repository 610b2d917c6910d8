import multiprocessing
import sqlite3

import pytest

from medsynx.errors import MedsynxError
from medsynx.plan import Plan, Sensitivity, Step
from medsynx.privacy import calibrate
from medsynx.study import PrivacySpec
from site_agent.chain import Chain
from site_agent.ledger import Account, Budget, Ledger

SPEC = PrivacySpec(epsilon=1.0, delta=1e-5)
BUDGET = Budget(epsilon=1.3, delta=1e-5)


def plan(*parts: str) -> Plan:
    steps = [
        Step(f"step {i}", "secure-sum", part, 4, 1 / parts.count(part), Sensitivity(300.0, 300.0, "test"))  # type: ignore[arg-type]
        for i, part in enumerate(parts)
    ]
    return calibrate(SPEC, steps)


def reserve(ledger: Ledger, p: Plan, i: int, run: str, dataset: str = "table", budget: Budget = BUDGET, **how) -> None:
    ledger.reserve(Account(dataset, **how), "0" * 64, run, p.steps[i], p, budget)


def refusal(call) -> str:
    with pytest.raises(MedsynxError) as caught:
        call()
    return caught.value.code


def test_a_run_that_cannot_finish_never_starts(tmp_path):
    ledger, p = Ledger(tmp_path / "l"), plan("train", "train")
    reserve(ledger, p, 0, "a")
    reserve(ledger, p, 1, "a")
    assert ledger.spent("table", 1e-5) == pytest.approx(1.0, rel=1e-3)
    assert refusal(lambda: reserve(ledger, p, 0, "b")) == "budget-exceeded"
    assert len(ledger.chain.entries()) == 2, "a refusal charges nothing"
    half = plan("train", "train", "train", "train")
    assert refusal(lambda: reserve(ledger, half, 0, "c")) == "budget-exceeded", (
        "the first step alone would fit, the plan does not"
    )


def test_a_crash_never_refunds(tmp_path):
    """Reserved and never settled counts as spent, also for the next process."""
    ledger, p = Ledger(tmp_path / "l"), plan("train")
    reserve(ledger, p, 0, "a")
    del ledger
    again = Ledger(tmp_path / "l")
    assert again.spent("table", 1e-5) == pytest.approx(1.0, rel=1e-3)
    assert refusal(lambda: reserve(again, p, 0, "b")) == "budget-exceeded"
    again.settle("table", "a", "step 0")
    assert again.spent("table", 1e-5) == pytest.approx(1.0, rel=1e-3), "settling changes no figure"


def test_training_and_holdout_patients_spend_apart_and_data_sets_too(tmp_path):
    ledger, p = Ledger(tmp_path / "l"), plan("train", "holdout")
    reserve(ledger, p, 0, "a")
    reserve(ledger, p, 1, "a")
    assert ledger.spent("table", 1e-5) == pytest.approx(1.0, rel=1e-3)
    apart = {"dataset": "other", "shares": lambda name: False}
    reserve(ledger, p, 0, "a", **apart)
    assert ledger.spent("other", 1e-5, lambda name: False) == pytest.approx(1.0, rel=1e-3)


def test_data_sets_spend_one_budget_unless_they_are_apart(tmp_path):
    """A name is no identity: nobody knows that the patients of another name are other patients."""
    ledger, p = Ledger(tmp_path / "l"), plan("train", "holdout")
    reserve(ledger, p, 0, "a")
    assert refusal(lambda: reserve(ledger, p, 0, "b", dataset="other")) == "budget-exceeded"
    reserve(ledger, p, 0, "b", dataset="other", shares=lambda name: False)
    assert ledger.spent("table", 1e-5) > 1.4, "read without the policy, everything counts"


def test_a_training_patient_of_one_split_may_be_a_holdout_patient_of_the_next(tmp_path):
    """Costs on the two parts compose in parallel within one split of the patients only."""
    p, wide = plan("train", "holdout"), Budget(10, 1e-5)
    one, two = Ledger(tmp_path / "one"), Ledger(tmp_path / "two")
    for ledger, splits in ((one, ("s", "s")), (two, ("s", "t"))):
        for step, split in enumerate(splits):
            reserve(ledger, p, step, "ab"[step], split=split, budget=wide)
    assert one.spent("table", 1e-5) == pytest.approx(1.0, rel=1e-3)
    assert two.spent("table", 1e-5) > 1.4


def test_a_step_is_charged_once_a_run(tmp_path):
    ledger, p = Ledger(tmp_path / "l"), plan("train", "train")
    reserve(ledger, p, 0, "a")
    assert refusal(lambda: reserve(ledger, p, 0, "a")) == "step-replayed"


def _race(path, run, queue):
    try:
        reserve(Ledger(path), plan("train"), 0, run)
        queue.put("in")
    except MedsynxError as error:
        queue.put(error.code)


def test_two_processes_cannot_both_take_the_last_budget(tmp_path):
    Ledger(tmp_path / "l")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    racers = [context.Process(target=_race, args=(tmp_path / "l", name, queue)) for name in ("a", "b", "c")]
    for r in racers:
        r.start()
    found = sorted(queue.get(timeout=240) for _ in racers)
    for r in racers:
        r.join()
    assert found == ["budget-exceeded", "budget-exceeded", "in"]


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE entry SET body = replace(body, 'one', 'two') WHERE id = 1",
        "DELETE FROM entry WHERE id = 1",
        "UPDATE entry SET at = '2000-01-01' WHERE id = 2",
        "UPDATE entry SET id = 9 WHERE id = 3",
    ],
)
def test_the_chain_shows_every_edit(tmp_path, tamper):
    chain = Chain(tmp_path / "c")
    for word in ("one", "two", "three"):
        chain.append({"word": word})
    with sqlite3.connect(tmp_path / "c") as db, pytest.raises(sqlite3.IntegrityError, match="append-only"):
        db.execute(tamper)
    with sqlite3.connect(tmp_path / "c") as db:
        db.executescript("DROP TRIGGER no_update; DROP TRIGGER no_delete;")
        db.execute(tamper)
    assert refusal(chain.entries) == "ledger-broken"
    assert refusal(lambda: chain.append({"word": "four"})) == "ledger-broken"


def test_files_are_for_the_owner_only(tmp_path):
    Chain(tmp_path / "c")
    assert (tmp_path / "c").stat().st_mode & 0o077 == 0
