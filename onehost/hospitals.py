"""Four hospitals for the demo: a real medical table that a dependency ships, dealt unevenly; and what introduces hospitals to each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from site_agent.identity import public_identity, write_roster

HOSPITALS = {"hillview": 0.40, "lakeside": 0.28, "northgate": 0.20, "riverside": 0.12}  #: name -> share of the patients


def deal_flchain(folder: Path) -> dict[str, Path]:
    """Write scikit-survival's flchain (7,874 patients, one row each) as one CSV a hospital.

    Hospitals differ in size and in case mix: older patients go more often to the later ones. Dealing is seeded: it only stages the demo.

    Returns:
        Hospital name -> CSV with columns age, chapter, creatinine, flc.grp, kappa, lambda, mgus, sample.yr, sex, death, futime.
    """
    import numpy as np
    from sksurv.datasets import load_flchain

    features, outcome = load_flchain()
    table = features.assign(
        death=np.where(outcome["death"], "dead", "alive"),
        futime=outcome["futime"].astype(int),
        age=features["age"].astype(int),
    )
    rng = np.random.default_rng(7)
    order = np.argsort(np.argsort(table["age"].to_numpy() + rng.normal(0, 12, len(table)))) / len(table)
    edges = np.cumsum(list(HOSPITALS.values()))
    place = np.minimum(np.searchsorted(edges, order, side="right"), len(HOSPITALS) - 1)
    folder.mkdir(parents=True, exist_ok=True)
    out = {}
    for number, name in enumerate(HOSPITALS):
        out[name] = folder / f"{name}.csv"
        table[place == number].to_csv(out[name], index=False)
    return out


def introduce(sites: Mapping[str, Path]) -> None:
    """Put the roster of all sites' public identities into each site's folder, as enrolment does between machines. Approve studies afterwards."""
    roster = {name: public_identity(folder) for name, folder in sites.items()}
    for folder in sites.values():
        write_roster(folder, roster)
