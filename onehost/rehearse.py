"""``medsynx site rehearse``: a study played at one site before it is approved, on fake data made from its public dictionary alone.

The manifest is the identical one, and so are the site's door, plan, noise and sizes; the coordinator's part runs here too, and sees the one fake
site as often as its quorum asks. The hospital's own data is only read and counted, and its ledger only read: nothing is sent or charged.
"""

from __future__ import annotations

import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.programme import priced_plan
from medsynx import codec
from medsynx.errors import MedsynxError
from medsynx.generators import families_of
from medsynx.plan import Plan
from medsynx.study import PatientIdColumn, Study
from medsynx.wire import Reply, Request
from site_agent.datasets import load_dataset, split_of
from site_agent.images import MAX_BYTES
from site_agent.ledger import Account, Ledger, epsilon_with
from site_agent.policy import Dataset, Limits, SiteFolder, SitePolicy, check_policy
from site_agent.quality import examine
from site_agent.service import SiteService
from site_agent.traffic import run_bytes
from strategies.in_process import InProcessFederation
from strategies.rounds import Progress, Run

PATIENTS = 1000  #: fake ones, where the real number is not known


def rehearse(
    study: Study,
    site: SiteFolder | None,
    dataset: str = "table",
    *,
    patients: int | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Play the study; returns the object that ``--json`` prints. What stands in its way is listed in ``problems``, none of it raised.

    Args:
        site: the hospital's folder, for its policy, ledger and data; without one the study is played on fake data only.
        patients: how many fake ones; as many as the real data set has when omitted.
    """
    problems: list[MedsynxError] = []
    found: dict[str, Any] = {"study": study.name, "digest": study.digest, "family": study.family.name}
    plan = priced_plan(study)
    data = None
    if site is not None:
        found["epsilon"] = _attempt(problems, lambda: _forecast(site, study, dataset, plan, problems))
        data = _attempt(problems, lambda: _read(site, study, dataset, problems))
    count = patients or (data["patients"] if data else PATIENTS)
    if study.image:
        pixels = math.prod(study.image.shape) * study.privacy.max_records_per_patient
        count = min(count, MAX_BYTES // (4 * pixels))
    planned, spoken = run_bytes(study, site.sites if site else tuple)
    found |= {"data": data, "planned_bytes": planned, "message_bytes": spoken}
    found["deadline_seconds"] = study.rounds.deadline_seconds
    found |= _attempt(problems, lambda: _play(study, count, watch)) or {}
    found["problems"] = [{"code": p.code, "message": p.message, "hint": p.hint} for p in problems]
    found["exit_status"] = problems[0].exit_status if problems else 0
    return found


def _attempt(problems: list[MedsynxError], call: Callable[[], Any]) -> Any:
    try:
        return call()
    except MedsynxError as problem:
        problems.append(problem)
        return None


def _forecast(site: SiteFolder, study: Study, dataset: str, plan: Plan, problems: list[MedsynxError]) -> dict[str, Any]:
    """What the site's patients have spent, and would have after one run. Raises what the policy refuses."""
    policy = site.policy()
    check_policy(policy, study, dataset, site.sites)
    account = Account(dataset, split_of(site, dataset, study), partial(policy.share, dataset))
    entries, budget = Ledger(site.path / "ledger.sqlite").chain.entries(), policy.budget
    before, after = (epsilon_with(entries, account, steps, budget.delta) for steps in ((), plan.steps))
    if after > budget.epsilon * (1 + 1e-6):
        said = f"data set {dataset}: a run would bring epsilon from {before:.3g} to {after:.3g}, the limit is {budget.epsilon:g}"
        problems.append(MedsynxError("budget-exceeded", said))
    return {"study": study.privacy.epsilon, "spent": before, "after": after, "limit": budget.epsilon}


def _read(site: SiteFolder, study: Study, dataset: str, problems: list[MedsynxError]) -> dict[str, Any]:
    table = load_dataset(site, dataset, study)
    _attempt(problems, lambda: table.require(site.policy().limits.minimum_patients))
    return examine(table, study)


def _play(study: Study, patients: int, watch: Callable[[Progress], None]) -> dict[str, Any]:
    """A whole run on fake patients in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="medsynx-rehearsal-") as place:
        folder = Path(place) / "site"
        limits = Limits(
            epsilon_per_study=study.privacy.epsilon,
            epsilon_lifetime=study.privacy.epsilon,
            delta=study.privacy.delta,
            minimum_patients=1,
            families=families_of(study.family),
            trust=(study.privacy.trust,),
        )
        made = fake(study, patients, Path(place))
        site = SiteFolder.create(
            folder, SitePolicy(site="rehearsal", datasets={"fake": Dataset(path=made)}, limits=limits)
        )
        site.approve(study, "fake")
        once = _Once(SiteService(site, simulated=True).answer)
        handlers: dict[str, Callable[[Request], Reply]] = {f"copy-{k}": once for k in range(study.rounds.quorum)}
        began = time.monotonic()
        Run(study, InProcessFederation(handlers), "rehearsal", watch, masked=False).conduct()
        spent = Ledger(folder / "ledger.sqlite").spent("fake", study.privacy.delta)
    return {
        "patients": patients,
        "steps": once.steps,
        "site_seconds": round(sum(s["seconds"] for s in once.steps), 2),
        "total_seconds": round(time.monotonic() - began, 2),
        "peak_mib": _peak_mib(),
        "bytes_out": sum(s["bytes"] for s in once.steps),
        "epsilon_of_run": spent,
    }


class _Once:
    """Asks the one site and gives each of its copies the same answer: they share noise, which fake data can bear."""

    def __init__(self, answer: Callable[[Request], Reply]) -> None:
        self.answer, self.steps = answer, []  # type: ignore[var-annotated]
        self.last: tuple[str, Reply] | None = None

    def __call__(self, request: Request) -> Reply:
        if self.last is None or self.last[0] != request.step:
            began = time.monotonic()
            reply = self.answer(request)
            seconds, size = round(time.monotonic() - began, 3), sum(a.nbytes for a in reply.arrays.values())
            self.steps.append({"step": request.step, "seconds": seconds, "bytes": size})
            self.last = (request.step, reply)
        return self.last[1]


def fake(study: Study, patients: int, folder: Path) -> Path:
    """A file of random patients within the study's public bounds, with as many records each as it allows; what is drawn follows no data."""
    rng, each = np.random.default_rng(), study.privacy.max_records_per_patient
    records = patients * each
    owner = np.arange(records) // each
    if study.image:
        height, width, channels = study.image.shape
        low, high = study.image.intensity
        shape = (records, height, width) if channels == 1 else (records, height, width, channels)
        images = (
            rng.integers(0, 256, shape, np.uint8)
            if (low, high) == (0, 255)
            else low + (high - low) * rng.random(shape, np.float32)
        )
        labels = np.array(study.image.classes)[rng.integers(0, len(study.image.classes), records)]
        np.savez(folder / "fake.npz", images=images, labels=labels, patients=owner)
        return folder / "fake.npz"
    columns = study.data_columns.values()
    codes = np.stack([rng.integers(0, codec.values(c), records) for c in columns], axis=1)
    table = codec.decode(codes, study, rng)
    for name, column in study.columns.items():
        if isinstance(column, PatientIdColumn):
            table[name] = owner
    table.to_csv(folder / "fake.csv", index=False)
    return folder / "fake.csv"


def _peak_mib() -> int:
    """Most memory this process ever held, the coordinator's part included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / (2**20 if sys.platform == "darwin" else 2**10))
