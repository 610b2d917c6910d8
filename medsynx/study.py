"""The study manifest: everything a hospital approves, in one public, digested document.

A manifest never carries code and never carries a patient: it names columns with public bounds, a generator family, a privacy budget,
the rounds, the evaluation and the release gate. Its digest is SHA-256 over a canonical JSON; whatever changes, the digest changes.

The column terms follow Frictionless Table Schema (type, minimum/maximum as ``bounds``, enum as ``levels``, missingValues) plus what privacy
adds: bins, roles, and two levels every column has of its own, ``other`` and ``missing``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from medsynx.errors import MedsynxError
from medsynx.image_spec import ImageSpec

Role = Literal["feature", "target", "survival_time", "event", "treatment", "site"]
TrustMode = Literal["secure-sum", "local"]
MAX_BINS = 256
MAX_LEVELS = 1000


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class _Column(_Model):
    role: Role = "feature"
    title: str | None = None


class _Binned(_Column):
    """A column with public bounds, cut into equal bins or at public interior edges."""

    bounds: tuple[float, float]
    bins: Annotated[int, Field(ge=2, le=MAX_BINS)] | None = None
    edges: tuple[float, ...] | None = Field(default=None, min_length=1, max_length=MAX_BINS - 1)

    @field_validator("bounds")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        lower, upper = bounds
        if not (abs(lower) < float("inf") and abs(upper) < float("inf")):
            raise ValueError("bounds must be finite numbers")
        if lower > upper:
            raise ValueError(f"lower {lower:g} > upper {upper:g}")
        if lower == upper:
            raise ValueError(f"lower and upper are both {lower:g}: a constant column carries nothing")
        return bounds

    @model_validator(mode="after")
    def _cut(self) -> _Binned:
        if (self.bins is None) == (self.edges is None):
            raise ValueError("give either `bins` (a number of equal bins) or `edges` (interior cut points)")
        if self.edges is not None:
            grid = (self.bounds[0], *self.edges, self.bounds[1])
            if any(a >= b for a, b in itertools.pairwise(grid)):
                raise ValueError("edges must rise strictly and lie within the bounds")
        return self

    @property
    def cuts(self) -> tuple[float, ...]:
        """All bin borders, lower and upper bound included: ``number of bins + 1`` rising numbers."""
        lower, upper = self.bounds
        if self.edges is not None:
            return (lower, *self.edges, upper)
        assert self.bins is not None
        return (*tuple(lower + (upper - lower) * i / self.bins for i in range(self.bins)), upper)


class NumericColumn(_Binned):
    """A number with public bounds; ``integer`` makes sampled values whole, and then every bin must hold a whole number."""

    type: Literal["numeric"]
    integer: bool = False

    @model_validator(mode="after")
    def _whole(self) -> NumericColumn:
        if self.integer and not _every_bin_holds_a_whole_number(self.cuts):
            raise ValueError("a bin holds no whole number; use fewer bins or `integer: false`")
        return self


class DateColumn(_Binned):
    """A date kept as days since a public ``origin``; ``bounds`` are days."""

    type: Literal["date"]
    origin: date

    @model_validator(mode="after")
    def _whole(self) -> DateColumn:
        if not _every_bin_holds_a_whole_number(self.cuts):
            raise ValueError("a bin holds no whole day; use fewer bins")
        return self


class LevelColumn(_Column):
    """A value of a public, closed list; ``ordinal`` says that the order of the levels means something.

    ``positive`` names the levels that count as the event when a target of more than two levels is predicted.
    """

    type: Literal["categorical", "ordinal"]
    levels: tuple[str, ...] = Field(min_length=1, max_length=MAX_LEVELS)
    positive: tuple[str, ...] | None = None

    @field_validator("levels", "positive", mode="before")
    @classmethod
    def _as_text(cls, levels: object) -> object:
        return [_text(v) for v in levels] if isinstance(levels, list | tuple) else levels

    @field_validator("levels")
    @classmethod
    def _distinct(cls, levels: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({v for v in levels if levels.count(v) > 1})
        if twice:
            raise ValueError(f"levels named twice: {', '.join(twice)}")
        return levels

    @model_validator(mode="after")
    def _known(self) -> LevelColumn:
        if self.positive is not None:
            strange = [v for v in self.positive if v not in self.levels]
            if strange or not 0 < len(set(self.positive)) < len(self.levels):
                raise ValueError("positive names some, but not all, of the levels")
        return self


class BooleanColumn(_Column):
    """Two public spellings, false first."""

    type: Literal["boolean"]
    levels: tuple[str, str] = ("false", "true")

    _as_text = field_validator("levels", mode="before")(
        lambda v: [_text(x) for x in v] if isinstance(v, list | tuple) else v
    )


class PatientIdColumn(_Model):
    """Who a row belongs to. It groups rows, is never encoded and never leaves the site."""

    type: Literal["patient-id"]
    title: str | None = None


Column = Annotated[
    NumericColumn | DateColumn | LevelColumn | BooleanColumn | PatientIdColumn, Field(discriminator="type")
]
DataColumn = NumericColumn | DateColumn | LevelColumn | BooleanColumn


class FamilySpec(_Model):
    """Which generator, and its own parameters (checked by the family)."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class PrivacySpec(_Model):
    """The budget of one run, for one patient at one site, neighbouring data sets differing by adding or removing that patient.

    ``records`` says how a patient of several records counts: ``capped``, each of at most ``max_records_per_patient`` fully (noise grows with
    that number), or ``averaged``, the patient's k records 1/k each in fixed point (noise does not grow; tables describe patients, not records).
    """

    epsilon: float = Field(gt=0, le=100)
    delta: float = Field(gt=0, le=1e-3)
    unit: Literal["patient"] = "patient"
    max_records_per_patient: int = Field(default=1, ge=1, le=100)
    records: Literal["capped", "averaged"] = "capped"
    trust: TrustMode = "secure-sum"
    tolerated_dropouts: int = Field(default=0, ge=0)

    @property
    def records_counted(self) -> int:
        """How many whole records one patient can amount to."""
        return 1 if self.records == "averaged" else self.max_records_per_patient


class RoundSpec(_Model):
    """How many sites must answer each exchange, and within how many seconds."""

    quorum: int = Field(default=2, ge=1)
    deadline_seconds: float = Field(default=120, gt=0, le=86_400)


class EvaluationSpec(_Model):
    """Whether a fifth of each site's patients is kept for a private evaluation, and what share of the budget the real reference takes."""

    federated: bool = True
    reference_share: float = Field(default=0.1, gt=0, lt=1)


class ImpossibleConstraint(_Model):
    """A combination that no record has: each named column takes one of the given values (see :func:`medsynx.codec.allowed`)."""

    impossible: dict[str, Any] = Field(min_length=1)


class OrderConstraint(_Model):
    """Two columns of one kind, the first never above the second; a missing value is above nothing."""

    order: tuple[str, str]


class GateSpec(_Model):
    """Thresholds a generator must meet before it can be released; an absent one is not asked for, one on a figure that is not measured is
    never met."""

    max_tvd1: float | None = Field(default=None, gt=0, le=1)
    max_tvd2: float | None = Field(default=None, gt=0, le=1)
    min_tstr_auc: float | None = Field(default=None, ge=0, le=1)
    max_memorisation: float | None = Field(default=None, gt=0, le=1)

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without a threshold that is not asked for and came later than the others: it changes no study's digest."""
        return {n: v for n, v in handler(self).items() if n != "max_memorisation" or v is not None}


class Study(_Model):
    """One study. Frozen; :attr:`digest` identifies it everywhere."""

    manifest: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{1,62}$")
    title: str = ""
    columns: dict[str, Column] = Field(default_factory=dict)
    constraints: tuple[ImpossibleConstraint | OrderConstraint, ...] = ()
    missing_values: tuple[str, ...] = ("", "NA", "NaN", "nan", "?")
    image: ImageSpec | None = None
    family: FamilySpec
    privacy: PrivacySpec
    rounds: RoundSpec = RoundSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    gate: GateSpec = GateSpec()

    @property
    def data_columns(self) -> dict[str, DataColumn]:
        """The encoded columns in manifest order: everything but the patient id."""
        return {n: c for n, c in self.columns.items() if not isinstance(c, PatientIdColumn)}

    @property
    def patient_id(self) -> str | None:
        """Name of the patient id column; None when each row is a patient of its own."""
        return next((n for n, c in self.columns.items() if isinstance(c, PatientIdColumn)), None)

    @property
    def orders(self) -> list[tuple[str, str]]:
        """Ordered pairs of columns, with those that follow from others: a <= b and b <= c give a <= c."""
        found = dict.fromkeys(c.order for c in self.constraints if isinstance(c, OrderConstraint))
        for _ in range(len(found)):
            found |= dict.fromkeys((a, d) for a, b in found for c, d in found if b == c and a != d)
        return list(found)

    def by_role(self, role: Role) -> str | None:
        """Name of the column with this role, or None. ``event`` stands in for an absent ``target``."""
        found: dict[str, str] = {c.role: n for n, c in self.data_columns.items() if c.role != "feature"}
        return found.get(role) or (found.get("event") if role == "target" else None)

    @property
    def survival(self) -> tuple[str, ...]:
        """Follow-up time, event and, where one is declared, treatment; empty without a follow-up time."""
        names = [self.by_role(r) for r in ("survival_time", "event", "treatment")]
        return tuple(n for n in names if n) if names[0] else ()

    def canonical(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, columns as an ordered list since their order is part of the study."""
        body = self.model_dump(mode="json")
        body["columns"] = [{"name": n, **spec} for n, spec in body["columns"].items()]
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`canonical`, 64 hexadecimal characters."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def with_family(self, name: str, parameters: dict[str, Any] | None = None) -> Study:
        """The same study with another generator family (and so another digest)."""
        return parse_study({**self.model_dump(mode="json"), "family": {"name": name, "parameters": parameters or {}}})


def load_study(path: Path) -> Study:
    """Read a YAML or JSON manifest.

    Raises:
        MedsynxError: ``study-unreadable``, or ``study-invalid`` with every wrong path in ``details``.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid UTF-8 YAML or JSON"
        raise MedsynxError("study-unreadable", f"{path}: {reason}") from None
    return parse_study(raw, source=str(path))


def parse_study(raw: object, source: str = "study") -> Study:
    """Validate a manifest that is already a mapping; see :func:`load_study` for the errors."""
    if not isinstance(raw, dict):
        raise MedsynxError("study-invalid", f"{source}: a manifest is a mapping of keys to values")
    problems: list[str] = []
    study: Study | None = None
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        problems += [_line(e) for e in error.errors()]
    problems += _across(raw)
    if study is not None:
        problems += _small_delta(study)
    if study is not None and not problems:
        problems += _asked_by_family(study)
    if study is not None and study.constraints and not problems:
        problems += _constraints(study)
    if problems:
        raise MedsynxError(
            "study-invalid", f"{source}: {len(problems)} error{'s' * (len(problems) > 1)}", details=problems
        )
    assert study is not None
    return study


def _small_delta(study: Study) -> list[str]:
    """A delta above one in the expected patients would allow a mechanism that publishes one of them whole."""
    parameters: Any = study.family.parameters
    if isinstance(parameters.get("teacher"), dict):  # what its own parameters may be, the family has said already
        parameters = parameters["teacher"].get("parameters")
    patients = parameters.get("patients") if isinstance(parameters, dict) else None
    if isinstance(patients, int) and study.privacy.delta * patients > 1:
        return [f"privacy.delta: {study.privacy.delta:g} is more than one in {patients:,} expected patients"]
    return []


def _asked_by_family(study: Study) -> list[str]:
    """What a family's parameters need of the rest of the study, for the families that say so."""
    from medsynx.generators import get_family

    problems = getattr(get_family(study.family.name), "problems", None)
    return problems(study) if problems else []


def _constraints(study: Study) -> list[str]:
    """Constraints on columns that are not there or cannot be compared; then what :mod:`medsynx.constraints` finds."""
    from medsynx.constraints import problems

    out: list[str] = []
    for k, constraint in enumerate(study.constraints):
        named = constraint.order if isinstance(constraint, OrderConstraint) else tuple(constraint.impossible)
        unknown = [n for n in named if n not in study.data_columns]
        if unknown:
            out.append(f"constraints.{k}: no column {', '.join(unknown)}")
        elif isinstance(constraint, OrderConstraint):
            first, second = (study.data_columns[n] for n in named)
            ordered = first.type == second.type and first.type in ("numeric", "date", "ordinal")
            alike = not isinstance(first, LevelColumn) or first.levels == getattr(second, "levels", None)
            if named[0] == named[1] or not ordered or not alike:
                out.append(
                    f"constraints.{k}: an order needs two numeric, two date or two ordinal columns of the same levels"
                )
    return out or problems(study)


def _image_study(section: Callable[[str], dict[str, Any]], columns: bool) -> list[str]:
    """What an image study may not say, or has to."""
    out = ["columns: a study describes columns or an image, not both"] if columns else []
    privacy = section("privacy")
    if privacy.get("max_records_per_patient", 1) != 1 and privacy.get("records") != "averaged":
        out.append("privacy.records: a patient's images are averaged before they are added; state `records: averaged`")
    slices, cap = section("image").get("slices"), privacy.get("max_records_per_patient", 1)
    if isinstance(slices, int) and isinstance(cap, int) and slices > cap:
        out.append(
            f"image.slices: {slices} of a volume, and a patient counts {cap}; raise privacy.max_records_per_patient"
        )
    return out


def _every_bin_holds_a_whole_number(cuts: tuple[float, ...]) -> bool:
    inner = all(math.ceil(low) < high for low, high in itertools.pairwise(cuts))
    return inner and math.ceil(cuts[-2]) <= cuts[-1]


def _text(value: object) -> str:
    """Spelling of a YAML scalar in a level list: ``yes`` and ``no`` are words here, not booleans."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _line(error: Any) -> str:
    path = [str(p) for p in error["loc"]]
    if len(path) > 2 and path[0] == "columns":
        path.pop(2)  # pydantic puts the discriminator ("numeric", ...) into the path
    message = error["msg"].removeprefix("Value error, ")
    return f"{'.'.join(path) or 'study'}: {message[0].lower() + message[1:]}"


def _across(raw: dict[str, Any]) -> list[str]:
    """What no single field can see. Works on the raw mapping so that it reports beside the field errors."""
    from medsynx.generators import FAMILIES, IMAGE_FAMILIES, get_family

    def section(key: str) -> dict[str, Any]:
        value = raw.get(key)
        return value if isinstance(value, dict) else {}

    out: list[str] = []
    columns = {n: c for n, c in section("columns").items() if isinstance(c, dict)}
    data = {n: c for n, c in columns.items() if c.get("type") != "patient-id"}
    if not data and not raw.get("image"):
        out.append("columns: a study describes at least one column or an image")
    if raw.get("image"):
        out += _image_study(section, bool(columns))
    for role in ("target", "survival_time", "event", "treatment", "site"):
        named = [n for n, c in data.items() if c.get("role") == role]
        if len(named) > 1:
            out.append(f"columns: role {role} given to {', '.join(named)}; only one column may have it")
    if len(columns) - len(data) > 1:
        out.append("columns: more than one patient-id column")
    out += [
        f"columns.{n}: role site needs a categorical column, whose levels are the sites' names"
        for n, c in data.items()
        if c.get("role") == "site" and c.get("type") != "categorical"
    ]
    roles = {c.get("role") for c in data.values()}
    if "survival_time" in roles and "event" not in roles:
        out.append("columns: a survival_time needs a column with role event")
    quorum, dropouts = section("rounds").get("quorum", 2), section("privacy").get("tolerated_dropouts", 0)
    if isinstance(quorum, int) and isinstance(dropouts, int) and dropouts >= quorum:
        out.append(f"privacy.tolerated_dropouts: {dropouts} of a quorum of {quorum} would leave nobody to add noise")
    name = section("family").get("name")
    if isinstance(name, str):
        if name not in FAMILIES:
            out.append(f"family.name: {name!r} is not one of {', '.join(FAMILIES)}")
        elif (name in IMAGE_FAMILIES) != bool(raw.get("image")):
            out.append(f"family.name: {name} makes {'images' if name in IMAGE_FAMILIES else 'tables'}")
        else:
            try:
                get_family(name).parameters(section("family").get("parameters") or {})
            except ValidationError as error:
                out += [f"family.parameters.{_line(e)}" for e in error.errors()]
    return out
