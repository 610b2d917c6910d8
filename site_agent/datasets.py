"""A registered data set as one table: a file, or the tables of the vault's data set, whose signed report must hold first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medsynx.errors import MedsynxError
from medsynx.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

    from site_agent.policy import SiteFolder


def read_dataset(folder: SiteFolder, name: str) -> pd.DataFrame:
    """The records of a registered data set.

    Raises:
        MedsynxError: ``policy-refused`` for a name that is not registered; those of :func:`medsynx.tables.read_table`; for the vault,
            ``dataset-unknown``, ``report-invalid`` when a file or the report is not as it was signed, or ``table-empty``.
    """
    declared = folder.policy().datasets.get(name)
    if declared is None:
        raise MedsynxError("policy-refused", f"data set {name} is not registered")
    if declared.path is not None:
        return read_table(folder.path / declared.path)
    import pandas as pd

    from site_agent.deid.keys import SiteKey
    from site_agent.vault import Vault

    assert declared.vault is not None
    vault = Vault(folder.path)
    vault.verified(declared.vault, SiteKey(folder.key()))
    rows = vault.catalogue.files(declared.vault, verdict="clean")
    tables = [read_table(vault.root / row["output"]) for row in rows if row["kind"] == "table"]
    if not tables:
        raise MedsynxError("table-empty", f"data set {declared.vault} of the vault holds no table")
    return pd.concat(tables, ignore_index=True)
