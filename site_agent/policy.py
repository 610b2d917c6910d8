"""What this hospital allows: its policy file, its data sets, and the studies its privacy officer approved. Default deny.

A site's folder: ``site.yaml`` (policy), ``site.key`` (secret for pseudonymous choices, 0600), ``approvals/DIGEST.json``, ``ledger.sqlite``,
``audit.sqlite``, ``runs/`` (what stays at the site between rounds), for secure sums ``identity.pem`` (0600), ``roster.json`` and
``secure_sum.sqlite``, and what :mod:`site_agent.enrolment` adds.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medsynx.errors import MedsynxError
from medsynx.generators import families_of
from medsynx.keys import read_secret
from medsynx.secure_sum.terms import roster_digest
from medsynx.study import Study, TrustMode
from site_agent import clock
from site_agent.approvals import Decision, Decisions, approved, me
from site_agent.audit import Audit, sent
from site_agent.chain import Entry
from site_agent.identity import KEY, ROSTER, make_identity, read_roster
from site_agent.ledger import Budget
from site_agent.traffic import Sites, run_bytes

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Labels(BaseModel):
    """Which ``column`` of a table holds the class of each patient's images; the table lies in ``vault``, else beside the images."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    column: str
    vault: str | None = None


class Dataset(BaseModel):
    """A registered data set: a file's ``path`` (a relative one starts at the site's folder), or the name of a data set in the ``vault``.

    ``labels`` is for images of the vault; without it their labels are the names of folders that the recipe let in. ``one_file_a_patient`` is the
    privacy officer's word that each image of the vault that does not say whose it is has a patient of its own; else these are left out.
    ``apart`` is the privacy officer's word that none of its patients is in another data set of this site; only then it has a budget of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: Path | None = None
    vault: str | None = None
    labels: Labels | None = None
    one_file_a_patient: bool = False
    apart: bool = False

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.path is None) == (self.vault is None):
            raise ValueError("name either path or vault")
        if (self.labels or self.one_file_a_patient) and self.vault is None:
            raise ValueError("labels and one_file_a_patient are for images of the vault")
        return self


class Hours(BaseModel):
    """When the site answers, by its local time. A window that ends at or before its begin ends on the next day; ``days`` are those it begins on."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    days: tuple[Day, ...] = DAYS
    begin: time = Field(alias="from")
    end: time = Field(alias="to")
    zone: str

    @field_validator("begin", "end", mode="before")
    @classmethod
    def _clock(cls, value: object) -> object:  # YAML 1.1 reads 18:00 without quotes as 18 * 60
        return f"{value // 60:02d}:{value % 60:02d}" if isinstance(value, int) and value < 1440 else value

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        try:
            return ZoneInfo(zone).key
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{zone!r} is no time zone") from None

    def open(self, now: datetime) -> bool:
        """Whether a moment lies in the window."""
        local = now.astimezone(ZoneInfo(self.zone))
        at, today, yesterday = local.time(), DAYS[local.weekday()], DAYS[local.weekday() - 1]
        if self.begin < self.end:
            return today in self.days and self.begin <= at < self.end
        return (today in self.days and at >= self.begin) or (yesterday in self.days and at < self.end)


class Limits(BaseModel):
    """Ceilings no coordinator can raise.

    Attributes:
        hours: when the site answers; at all hours when absent.
        bytes_per_day: what may leave in any 24 hours, cargo and messages together, asked for before it is made; no limit when absent.
        bytes_per_study: what may ever leave for one study, all its runs together.
        approvers: who may approve a study: names of accounts of this machine, or what they give as ``--by``. Nobody when empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    epsilon_per_study: float = Field(default=1.0, gt=0)
    epsilon_lifetime: float = Field(default=3.0, gt=0)
    delta: float = Field(default=1e-5, gt=0, le=1e-3)
    minimum_patients: int = Field(default=100, ge=1)
    families: tuple[str, ...] = ("marginals",)
    trust: tuple[TrustMode, ...] = ("local",)
    hours: Hours | None = None
    bytes_per_day: int | None = Field(default=None, gt=0)
    bytes_per_study: int | None = Field(default=None, gt=0)
    approvers: tuple[str, ...] = ()


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

    def share(self, one: str, other: str) -> bool:
        """Whether two data sets may hold the same patients, and so spend one budget: always, unless one of them is registered as ``apart``."""
        registered = [self.datasets[name] for name in (one, other) if name in self.datasets]
        return one == other or not any(d.apart for d in registered)


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
        if not policy.limits.approvers:  # who sets the site up, until the file says otherwise
            policy = policy.model_copy(update={"limits": policy.limits.model_copy(update={"approvers": (me(),)})})
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
        (path / "approvals").mkdir(mode=0o700, exist_ok=True)
        (path / "site.yaml").write_text(
            yaml.safe_dump(policy.model_dump(mode="json", exclude_none=True, by_alias=True), sort_keys=False), "utf-8"
        )
        with os.fdopen(os.open(path / "site.key", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as f:
            f.write(secrets.token_bytes(32))
        make_identity(path / KEY)
        return SiteFolder(path)

    def policy(self) -> SitePolicy:
        """The policy, read anew each time so that an edit takes effect at once. Raises ``policy-refused`` when it cannot be read."""
        try:
            return SitePolicy.model_validate(yaml.safe_load((self.path / "site.yaml").read_text("utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            raise MedsynxError("policy-refused", f"{self.path / 'site.yaml'} is missing or no YAML") from None
        except ValidationError as error:
            wrong = [f"{'.'.join(map(str, e['loc'])) or 'site.yaml'}: {e['msg']}" for e in error.errors()]
            raise MedsynxError("policy-refused", f"{self.path / 'site.yaml'} is invalid", details=wrong) from None

    def key(self) -> bytes:
        """The site's secret. Raises ``policy-refused`` when it is missing, ``key-exposed`` when others on this machine can read it."""
        file = self.path / "site.key"
        if not file.exists():
            raise MedsynxError("policy-refused", f"{file} must exist with mode 0600")
        return read_secret(file)

    def sites(self) -> tuple[str, ...]:
        """The sites of the roster; none before there is one. Raises ``roster-mismatch`` for one that cannot be read."""
        return tuple(read_roster(self.path / ROSTER)) if (self.path / ROSTER).exists() else ()

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
        policy = self.policy()
        check_policy(policy, study, dataset, self.sites)
        check_approver(policy, by or me())
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
        log = [e["kind"] for e in Audit(self.path / "audit.sqlite").chain.entries() if e["study"] == digest]
        if [k for k in log if k in ("study-approved", "study-refused")][-1:] != ["study-approved"]:
            raise MedsynxError(
                "study-not-approved",
                f"study {digest[:16]} was not approved last: the audit log says otherwise than its file",
                hint="Its file was restored or written by hand. Read the study again and run `medsynx site approve`.",
            )
        return Approval(study, decision.dataset, decision.roster, decision.by)


def check_policy(policy: SitePolicy, study: Study, dataset: str, sites: Sites) -> None:
    """Raise ``policy-refused`` with the first rule a study breaks. Looks at no record.

    Args:
        sites: gives the names in the roster, which say how long the messages of a secure sum are.
    """
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
    if limits.bytes_per_study is not None:
        leaves, limit = run_bytes(study, sites)[0], limits.bytes_per_study
        rules.append((leaves <= limit, f"a run sends up to {leaves:,} bytes, the limit is {limit:,} a study"))
    for kept, message in rules:
        if not kept:
            raise MedsynxError("policy-refused", f"site {policy.site}: {message}")


def check_approver(policy: SitePolicy, by: str) -> None:
    """Raise ``policy-refused`` when this person may not approve studies. Who can write the site's folder is for the machine's accounts to say."""
    if by not in policy.limits.approvers:
        named = ", ".join(policy.limits.approvers) or "nobody"
        raise MedsynxError(
            "policy-refused",
            f"site {policy.site}: {by} may not approve studies, {named} may",
            hint="Ask one of them, or add the name to `limits.approvers` in site.yaml.",
        )


def check_clock(ledger: list[Entry], audit: list[Entry]) -> clock.Reading:
    """Both clocks now. Raises ``policy-refused`` while the wall clock is behind the site's own records: nothing is answered then."""
    now = clock.read()
    late = max(clock.behind(ledger, now), clock.behind(audit, now))
    if late > clock.TOLERANCE:
        raise MedsynxError(
            "policy-refused",
            f"the clock is {late.total_seconds():,.0f} seconds behind the site's own records",
            hint="Set the clock right; if the records are wrong, run `medsynx site acknowledge`.",
        )
    return now


def check_traffic(limits: Limits, ledger: list[Entry], audit: list[Entry], study: str, asked: int) -> None:
    """Raise ``policy-refused`` when the site does not answer now: out of hours, a clock set back, or more bytes than may leave.

    Args:
        ledger: the ledger's entries.
        audit: the audit log's entries.
        study: digest of the study asked for.
        asked: bytes that are about to leave.
    """
    now = check_clock(ledger, audit)
    if limits.hours is not None and not limits.hours.open(now.wall):
        raise MedsynxError("policy-refused", "the site does not answer at this hour")
    since = (now.wall - timedelta(days=1)).isoformat()
    left = sent(audit) if limits.bytes_per_day is not None or limits.bytes_per_study is not None else []
    for limit, what, bytes_ in (
        (limits.bytes_per_day, "a day", sum(n for e, n in left if e["at"] > since)),
        (limits.bytes_per_study, "a study", sum(n for e, n in left if e["study"] == study)),
    ):
        if limit is not None and bytes_ + asked > limit:
            raise MedsynxError("policy-refused", f"{bytes_ + asked:,} bytes would leave, the limit is {limit:,} {what}")
