"""What this hospital allows: its policy file, its data sets, and the studies its privacy officer approved. Default deny.

A site's folder: ``site.yaml`` (policy), ``site.key`` (secret for pseudonymous choices, 0600), ``approvals/DIGEST.json``, ``ledger.sqlite``,
``audit.sqlite``, ``runs/`` (what stays at the site between rounds), for secure sums ``identity.pem`` (0600), ``roster.json`` and
``secure_sum.sqlite``, and what :mod:`site_agent.enrolment` adds.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medsynx.errors import MedsynxError
from medsynx.generators import families_of
from medsynx.keys import read_secret
from medsynx.secure_sum.terms import roster_digest
from medsynx.study import Study, TrustMode
from site_agent.approvals import Decision, Decisions, approved, me
from site_agent.audit import Audit
from site_agent.identity import KEY, ROSTER, make_identity, read_roster
from site_agent.ledger import Budget


class Labels(BaseModel):
    """Which ``column`` of a table holds the class of each patient's images; the table lies in ``vault``, else beside the images."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    column: str
    vault: str | None = None


class Dataset(BaseModel):
    """A registered data set: a file's ``path`` (a relative one starts at the site's folder), or the name of a data set in the ``vault``.

    ``labels`` is for images of the vault; without it their labels are the names of folders that the recipe let in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: Path | None = None
    vault: str | None = None
    labels: Labels | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.vault is None):
            raise ValueError("name either path or vault")
        if self.labels and self.vault is None:
            raise ValueError("labels are for images of the vault")
        return self


class Limits(BaseModel):
    """Ceilings no coordinator can raise."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epsilon_per_study: float = Field(default=1.0, gt=0)
    epsilon_lifetime: float = Field(default=3.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, le=1e-3)
    minimum_patients: int = Field(default=100, ge=1)
    families: tuple[str, ...] = ("marginals",)
    trust: tuple[TrustMode, ...] = ("local",)


class SitePolicy(BaseModel):
    """``site.yaml``. ``testing_without_noise`` switches noise off and marks everything this site answers as not private."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    site: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    datasets: dict[str, Dataset]
    limits: Limits = Limits()
    testing_without_noise: bool = False

    @field_validator("datasets")
    @classmethod
    def _once(cls, datasets: dict[str, Dataset]) -> dict[str, Dataset]:
        """The ledger keeps a budget a name: under two names the same patients would have two."""
        places = [d.vault or d.path for d in datasets.values()]
        if len(set(places)) < len(places):
            raise ValueError("a data set is registered under one name")
        return datasets

    @property
    def budget(self) -> Budget:
        """Lifetime budget of each data set."""
        return Budget(self.limits.epsilon_lifetime, self.limits.delta)


@dataclass(frozen=True)
class Approval:
    """A study the privacy officer read, the data set it may use, the digest of the roster it was approved under (None: there was none), and who."""

    study: Study
    dataset: str
    roster: str | None = None
    approved_by: str = ""


class SiteFolder:
    """Reads and writes a site's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def create(path: Path, policy: SitePolicy) -> SiteFolder:
        """Make a new site folder (0700) with its policy and key. Raises ``file-exists``."""
        if (path / "site.yaml").exists():
            raise MedsynxError("file-exists", f"{path} is a site already")
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
        (path / "approvals").mkdir(mode=0o700, exist_ok=True)
        (path / "site.yaml").write_text(
            yaml.safe_dump(policy.model_dump(mode="json", exclude_none=True), sort_keys=False), "utf-8"
        )
        with os.fdopen(os.open(path / "site.key", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as f:
            f.write(secrets.token_bytes(32))
        make_identity(path / KEY)
        return SiteFolder(path)

    def policy(self) -> SitePolicy:
        """The policy, read anew each time so that an edit takes effect at once. Raises ``policy-refused`` when it cannot be read."""
        try:
            return SitePolicy.model_validate(yaml.safe_load((self.path / "site.yaml").read_text("utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError):
            raise MedsynxError("policy-refused", f"{self.path / 'site.yaml'} is missing or invalid") from None

    def key(self) -> bytes:
        """The site's secret. Raises ``policy-refused`` when it is missing, ``key-exposed`` when others on this machine can read it."""
        file = self.path / "site.key"
        if not file.exists():
            raise MedsynxError("policy-refused", f"{file} must exist with mode 0600")
        return read_secret(file)

    @property
    def decisions(self) -> Decisions:
        """The privacy officer's decisions."""
        return Decisions(self.path / "approvals")

    def approve(self, study: Study, dataset: str, *, by: str | None = None, expires: datetime | None = None) -> Path:
        """Record the privacy officer's approval of exactly this study on this data set.

        Args:
            by: who approves; whom this machine takes the user for when omitted.
            expires: when it ends; after :data:`site_agent.approvals.DAYS` days when omitted.

        Raises:
            MedsynxError: ``policy-refused`` when the study breaks the policy, ``roster-mismatch`` for a roster that cannot be read, ``ledger-broken``
                when it cannot be written to the audit log.
        """
        check_policy(self.policy(), study, dataset)
        roster = roster_digest(read_roster(self.path / ROSTER)) if (self.path / ROSTER).exists() else None
        decision = approved(study, dataset, roster, by, expires)
        self._log(study.digest, decision)
        return self.decisions.keep(study.digest, decision)

    def refuse(self, digest: str, reason: str, *, study: Study | None = None, by: str | None = None) -> Path:
        """Record that this study is not to run here; it stays so until it is approved anew."""
        before = self.decisions.find(digest)
        study = study or (before[1] if before else None)
        decision = Decision(
            status="refused",
            study=study.model_dump(mode="json") if study else None,
            dataset=before[0].dataset if before else None,
            by=by or me(),
            at=datetime.now(UTC),
            reason=reason,
        )
        target = self.decisions.keep(digest, decision)
        self._log(digest, decision)
        return target

    def _log(self, digest: str, decision: Decision) -> None:
        Audit(self.path / "audit.sqlite").decided(
            digest, decision.status, decision.by, decision.dataset, decision.expires_at, decision.reason
        )

    def approval(self, digest: str) -> Approval:
        """The approved study of this digest, recomputed from the stored manifest. Raises ``study-not-approved``."""
        decision, study = self.decisions.find(digest) or (None, None)
        state = decision.state() if decision else "not approved"
        if decision is None or study is None or decision.dataset is None or state != "approved":
            hint = (
                "Its approval has expired: read it again and run `medsynx site approve`."
                if state == "expired"
                else None
            )
            said = {"expired": "is approved no longer: its approval expired", "refused": "was refused"}.get(
                state, "is not approved"
            )
            raise MedsynxError("study-not-approved", f"study {digest[:16]} {said} at this site", hint=hint)
        return Approval(study, decision.dataset, decision.roster, decision.by)


def check_policy(policy: SitePolicy, study: Study, dataset: str) -> None:
    """Raise ``policy-refused`` with the first rule a study breaks. Looks at no record."""
    limits, asked = policy.limits, families_of(study.family)
    rules = [
        (dataset in policy.datasets, f"data set {dataset} is not registered"),
        (
            set(asked) <= set(limits.families),
            f"family {' with '.join(asked)} is not among {', '.join(limits.families)}",
        ),
        (
            study.privacy.trust in limits.trust,
            f"trust mode {study.privacy.trust} is not among {', '.join(limits.trust)}",
        ),
        (
            study.privacy.epsilon <= limits.epsilon_per_study,
            f"epsilon {study.privacy.epsilon:g} is above {limits.epsilon_per_study:g} a study",
        ),
        (study.privacy.delta <= limits.delta, f"delta {study.privacy.delta:g} is above {limits.delta:g}"),
    ]
    for kept, message in rules:
        if not kept:
            raise MedsynxError("policy-refused", f"site {policy.site}: {message}")
