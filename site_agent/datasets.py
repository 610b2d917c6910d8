"""A registered data set as its study reads it: a file, or tables or images of the vault's data set, whose signed report must hold first."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medsynx.errors import MedsynxError
from medsynx.tables import read_table
from site_agent.images import prepare_images, read_images
from site_agent.ingest import LocalTable, prepare

if TYPE_CHECKING:
    import pandas as pd

    from medsynx.study import Study
    from site_agent.policy import Dataset, SiteFolder


def load_dataset(folder: SiteFolder, name: str, study: Study, *, strict: bool = False) -> LocalTable:
    """The encoded patients of a registered data set.

    Raises:
        MedsynxError: those of :func:`read_dataset`, :func:`site_agent.ingest.prepare`, :func:`site_agent.images.prepare_images` and
            :func:`site_agent.vault_images.prepare_vault_images`.
    """
    if study.image is None:
        return prepare(read_dataset(folder, name), study, folder.key(), strict=strict, site=folder.policy().site)
    declared = _declared(folder, name)
    if declared.path is not None:
        return load_images(folder.path / declared.path, study, folder.key(), strict=strict)
    from site_agent.vault import Vault
    from site_agent.vault_images import prepare_vault_images

    return prepare_vault_images(Vault(folder.path), declared, study, folder.key(), strict=strict)


def load_file(path: Path, study: Study, key: bytes, *, strict: bool = False, site: str = "") -> LocalTable:
    """The encoded patients of a file; see :func:`load_dataset`."""
    if study.image is None:
        return prepare(read_table(path), study, key, strict=strict, site=site)
    return load_images(path, study, key, strict=strict)


def load_images(
    path: Path, study: Study, key: bytes, part: Literal["train", "test"] = "train", *, strict: bool = False
) -> LocalTable:
    """The labelled images of an NPZ file (of MedMNIST's layout, that ``part``), or of a folder with one folder of pictures a class."""
    if path.is_dir():
        from site_agent.image_files import prepare_folder

        return prepare_folder(path, study, key, strict=strict)
    return prepare_images(read_images(path, part), study, key, strict=strict)


def split_of(folder: SiteFolder, name: str, study: Study) -> str:
    """What decides which patients of a data set are its hold-out patients: under two different splits one patient may have been both.

    A patient with an id keeps its part as long as the id stays. A record without one is named by its content, so that its part is only known to
    stay while the file does: of such a data set every change is another split.

    Raises:
        MedsynxError: ``policy-refused`` for a name that is not registered, ``table-unreadable``.
    """
    declared = _declared(folder, name)
    column = study.patient_id
    if study.image is not None:
        several = study.privacy.max_records_per_patient > 1
        column = "patients" if several or (declared.vault is not None and not declared.one_file_a_patient) else None
    named = hmac.new(folder.key(), f"split\x1e{name}\x1e{column or ''}".encode(), hashlib.sha256)
    if column is not None:
        return named.hexdigest()[:32]
    if declared.path is None:
        from site_agent.vault import Vault

        for row in Vault(folder.path).catalogue.files(str(declared.vault), verdict="clean"):
            named.update(str(row["sha256"]).encode())
        return named.hexdigest()[:32]
    path = folder.path / declared.path
    try:
        for file in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
            with file.open("rb") as content:
                named.update(f"{file.relative_to(path)}\x1e".encode() + hashlib.file_digest(content, "sha256").digest())
    except OSError as error:
        raise MedsynxError("table-unreadable", f"{path.name}: {error.strerror or 'cannot be read'}") from None
    return named.hexdigest()[:32]


def _declared(folder: SiteFolder, name: str) -> Dataset:
    declared = folder.policy().datasets.get(name)
    if declared is None:
        raise MedsynxError("policy-refused", f"data set {name} is not registered")
    return declared


def read_dataset(folder: SiteFolder, name: str) -> pd.DataFrame:
    """The records of a registered data set of tables.

    Raises:
        MedsynxError: ``policy-refused`` for a name that is not registered; those of :func:`medsynx.tables.read_table`; for the vault,
            ``dataset-unknown``, ``report-invalid`` when a file or the report is not as it was signed, or ``table-empty``.
    """
    declared = _declared(folder, name)
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
