"""The vault: de-identified files by their content, a catalogue of data sets, a signed report for each. Files 0600, folders 0700.

``objects/ab/SHA256.suffix``, ``catalogue.sqlite``, ``reports/DATASET.{json,html}`` below the site's folder ``vault/``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from medsynx import files
from medsynx.errors import MedsynxError
from site_agent.deid.catalogue import Catalogue, Entry
from site_agent.deid.keys import SiteKey
from site_agent.deid.report import verify, write
from site_agent.deid.tabular import without_patient


class Vault:
    """A place for the engine, and what the site's commands ask of it.

    Args:
        site: the site's folder.
    """

    def __init__(self, site: Path) -> None:
        self.root = site / "vault"
        for folder in (self.root, self.root / "objects", self.root / "reports"):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.catalogue = Catalogue(self.root / "catalogue.sqlite")

    def output(self, entry: Entry, name: str) -> str:
        """Where a clean file lies: by its own SHA-256."""
        assert entry.sha256 is not None
        return _object(entry.sha256, name[name.index(".") :])

    def sign(self, dataset: str, key: SiteKey) -> Path:
        """Write the data set's report; returns the HTML's path."""
        return write(self.catalogue, self.root, dataset, key, stem=f"reports/{dataset}")

    def verified(self, dataset: str, key: SiteKey) -> dict[str, Any]:
        """The report's content after every check. Raises ``dataset-unknown`` or ``report-invalid``."""
        if self.catalogue.dataset(dataset) is None:
            raise MedsynxError("dataset-unknown", f"there is no data set {dataset}")
        return verify(self.catalogue, self.root, dataset, key, stem=f"reports/{dataset}")

    def forget_dataset(self, dataset: str) -> int:
        """Delete a data set, its report and every object no other data set holds; returns how many objects went."""
        if self.catalogue.dataset(dataset) is None:
            raise MedsynxError("dataset-unknown", f"there is no data set {dataset}")
        outputs = {f["output"] for f in self.catalogue.files(dataset, verdict="clean")}
        self.catalogue.remove_dataset(dataset)
        for suffix in (".json", ".html"):
            (self.root / "reports" / (dataset + suffix)).unlink(missing_ok=True)
        return sum(self._drop(o) for o in outputs)

    def forget_patient(self, patient: str, key: SiteKey) -> dict[str, int]:
        """Withdraw a patient from every data set: files go, tables lose the rows, reports are signed anew.

        Args:
            patient: a pseudonym.

        Returns:
            data set -> files deleted or rewritten.
        """
        touched: dict[str, int] = {}
        for dataset in [d["name"] for d in self.catalogue.datasets()]:
            rows = list(self.catalogue.files(dataset, patient=patient))
            gone = [r for r in rows if r["patient"] == patient]
            for row in rows:
                if row["patient"] != patient and row["verdict"] == "clean" and not self._rewrite(row, patient):
                    gone.append(row)
            self.catalogue.remove_files([r["id"] for r in gone])
            for output in {r["output"] for r in gone if r["output"]}:
                self._drop(output)
            if rows:
                touched[dataset] = len(rows)
        self.catalogue.withdraw(patient)
        for dataset in touched:
            self.sign(dataset, key)
        return touched

    def issuers(self) -> list[str]:
        """Under which issuers a bare patient identifier may have come in: none, and those the recipes of the data sets name."""
        recipes = [json.loads(d["recipe"]) for d in self.catalogue.datasets()]
        return sorted({"", *(r.get("default_issuer", "") for r in recipes), *(r["table"]["issuer"] for r in recipes)})

    def _rewrite(self, row: dict[str, Any], patient: str) -> bool:
        """A table without one patient's rows; False when nothing would be left."""
        path = self.root / row["output"]
        column = json.loads(row["notes"]).get("patient_column")
        data = without_patient(path.read_bytes(), path.suffix, column, patient)
        if data is None:
            return False
        digest = hashlib.sha256(data).hexdigest()
        output = _object(digest, path.suffix)
        target = self.root / output
        target.parent.mkdir(mode=0o700, exist_ok=True)
        files.write(target, data, files.PRIVATE)
        self.catalogue.update_table(row["id"], output, digest, len(data))
        self._drop(row["output"])
        return True

    def _drop(self, output: str) -> bool:
        if self.catalogue.references(output):
            return False
        (self.root / output).unlink(missing_ok=True)
        return True


def _object(digest: str, suffix: str) -> str:
    return f"objects/{digest[:2]}/{digest}{suffix}"
