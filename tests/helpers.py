"""Sites, runs and bundles made on the spot for tests of several rooms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from medsynx.generators import families_of
from medsynx.generators.base import Arrays
from medsynx.secure_sum.ring import RING
from medsynx.study import Study
from medsynx.wire import Reply, Request
from onehost.hospitals import introduce
from site_agent.policy import Dataset, Limits, SiteFolder, SitePolicy
from tests.conftest import small_table


def make_site(
    folder: Path,
    study: Study,
    table: pd.DataFrame,
    *,
    name: str = "north",
    approve: bool = True,
    noise: bool = True,
    **limits: object,
) -> SiteFolder:
    """A site folder with one table whose policy fits the study, unless ``limits`` say otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "table.csv", index=False)
    fitting = {
        "epsilon_per_study": study.privacy.epsilon,
        "epsilon_lifetime": study.privacy.epsilon,
        "delta": study.privacy.delta,
        "minimum_patients": 20,
        "families": families_of(study.family),
        "trust": (study.privacy.trust,),
    }
    policy = SitePolicy(
        site=name,
        datasets={"table": Dataset(path=Path("table.csv"))},
        limits=Limits(**{**fitting, **limits}),  # type: ignore[arg-type]
        testing_without_noise=not noise,
    )
    site = SiteFolder.create(folder, policy)
    if approve:
        site.approve(study, "table")
    return site


def add_dataset(site: SiteFolder, name: str, table: pd.DataFrame, *, apart: bool = True) -> None:
    """Register one more table, by default with the officer's word that its patients are others."""
    table.to_csv(site.path / f"{name}.csv", index=False)
    file = site.path / "site.yaml"
    policy = yaml.safe_load(file.read_text("utf-8"))
    policy["datasets"][name] = {"path": f"{name}.csv", "apart": apart}
    file.write_text(yaml.safe_dump(policy, sort_keys=False), "utf-8")


def masking_sites(folder: Path, study: Study, names: tuple[str, ...], **how: object) -> dict[str, SiteFolder]:
    """Enrolled sites that approved a study of trust mode ``secure-sum``."""
    out = {
        n: make_site(folder / n, study, small_table(300, k), name=n, approve=False, **how)  # type: ignore[arg-type]
        for k, n in enumerate(names)
    }
    introduce({n: site.path for n, site in out.items()})
    for site in out.values():
        site.approve(study, "table")
    return out


def make_tables(folder: Path, sites: int = 3, rows: int = 300) -> list[Path]:
    """CSV files of small tables."""
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for k in range(sites):
        out.append(folder / f"{k}.csv")
        small_table(rows, 100 + k).to_csv(out[-1], index=False)
    return out


def zero_reply(size: int, request: Request | None = None) -> Reply:
    """An answer of the right shape to a secure-sum step."""
    return Reply({"sum": RING.pack(np.zeros(size, np.uint64))}, answers=request.digest if request else "")


def integers(arrays: Arrays) -> np.ndarray:
    """The signed integers of a secure sum's cargo."""
    return RING.decode(RING.unpack(arrays["sum"]))


def refuse(code: str):
    """A site that refuses everything."""

    def answer(request: Request) -> Reply:
        return Reply(refusal=code)

    return answer
