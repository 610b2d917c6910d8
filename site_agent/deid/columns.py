"""One column in its declared form. What does not have it is emptied; ages, births and postcodes are made coarse.

Who is older than 89 must not be found again by arithmetic: births never leave, and a patient with a sign of such an age leaves no date.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from medsynx.study import BooleanColumn, DateColumn, LevelColumn, NumericColumn, Study
from site_agent.deid.keys import SiteKey
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.tablefiles import spelling
from site_agent.deid.vocabulary import OLDEST

LIFETIME = 150  # years; an age beyond it is not in years
#: three-digit ZIP areas with fewer than 20,000 people (HHS guidance on 45 CFR 164.514(b), 2010 census)
SMALL_ZIP3 = frozenset("036 059 102 202 203 204 205 369 556 692 753 772 821 823 878 879 884 893".split())
#: how many of an age's unit make a year; the plural only: `age_at_day_1` is in years
UNITS = {
    1.0: "years|yrs|jahren?",
    12.0: "months|mos|mths|monaten?",
    365.25 / 7: "weeks|wks|wochen",
    365.25: "days|tagen?",
    8766.0: "hours|hrs|stunden",
}
UNIT = "|".join(UNITS.values())
AGE = r"age[sd]?|alters?|patientage|ageat\w*"
BIRTH = r"birth|born|birthdate|birthday|birthyear|dob|yob|geburts?\w*|geboren|naissance|nacimiento|nascita"
NOT_WHEN = r"weight|order|place|type|mode|length|country|city|state|method|rate|plurality|abroad"
WHEN = r"date|year|month|day|dob|yob|birthdate|birthday|birthyear|geburtsdatum|geburtsjahr|geburtstag"
POSTCODE = r"zip|zip code|zipcode|postcode|postal|plz"


def says(text: str, pattern: str) -> bool:
    """Whether one of the words is in a column's name or title."""
    return re.search(rf"\b({pattern})\b", _words(text)) is not None


def is_birth(name: str, spec: Any = None) -> bool:
    """Whether a column tells when somebody was born; ``birth_weight`` and ``n_births`` do not."""
    text = _label(name, spec)
    if isinstance(spec, BooleanColumn) or not says(text, BIRTH):
        return False
    if isinstance(spec, DateColumn) or says(name, WHEN):
        return True
    if says(text, NOT_WHEN):
        return False
    number = isinstance(spec, NumericColumn) and spec.bounds[1] > 1000
    levels = isinstance(spec, LevelColumn) and any(re.search(r"\d", v) for v in spec.levels)
    return number or levels or spec is None or says(text, WHEN)


def is_age(name: str, spec: Any) -> bool:
    """Whether a column tells how old somebody is."""
    return isinstance(spec, NumericColumn | LevelColumn) and says(_label(name, spec), AGE) and not is_birth(name, spec)


def per_year(name: str, spec: NumericColumn) -> float:
    """How many of an age column's units make a year.

    Raises:
        Quarantine: ``age-unit`` when neither name nor title names one and the bounds are no years.
    """
    title = (spec.title or "").lower()
    places = (
        (_words(name), rf"\b(?:age|alter) (?:in )?({UNIT})\b|\b({UNIT})$"),
        (title, rf"\bin ({UNIT})\b|[(\[]({UNIT})[)\]]|\b({UNIT})(?: of age)?$"),
    )
    for text, pattern in places:
        m = re.search(pattern, text)
        if m:
            unit = next(g for g in m.groups() if g)
            return next(n for n, words in UNITS.items() if re.fullmatch(words, unit))
    if spec.bounds[1] > LIFETIME:
        raise Quarantine("age-unit", f"column {name}")
    return 1.0


def day_of(text: str) -> date | None:
    """The calendar day as it is written, whatever its time and zone; None when it is no ISO 8601 date."""
    try:
        return datetime.fromisoformat(text).date()
    except ValueError:
        return None


def texts(values: pd.Series) -> pd.Series:
    """The cells as text."""
    return pd.Series([spelling(v) for v in values], index=values.index, dtype=object)


def declared_form(text: pd.Series, spec: Any) -> pd.Series:
    """True where a cell, given as text, has the form and the bounds its column declares."""
    if isinstance(spec, NumericColumn):
        parsed = pd.to_numeric(text, errors="coerce")
        return parsed.between(*spec.bounds)  # not for NaN and infinities
    if isinstance(spec, DateColumn):
        return text.map(lambda v: day_of(v) is not None)
    return text.isin(spec.levels)


def moved(text: pd.Series, pseudonyms: Sequence[str], key: SiteKey, old: frozenset[str]) -> pd.Series:
    """Dates in the past by each patient's days; '' for no date and for a patient over 89."""

    def one(value: str, patient: str) -> str:
        day = day_of(value)
        if day is None or patient in old:
            return ""
        try:
            return (day - timedelta(days=key.days(patient))).isoformat()
        except OverflowError:
            return ""

    return pd.Series([one(v, p) for v, p in zip(text, pseudonyms, strict=True)], index=text.index, dtype=object)


def coarse(name: str, spec: Any, column: pd.Series) -> tuple[pd.Series, str]:
    """A column of declared values with ages over 89, births and postcodes grouped, and what was done ('' for nothing)."""
    if is_birth(name, spec):
        if isinstance(spec, NumericColumn) and spec.bounds[0] > 1000:
            return _decades(column, spec), "year of birth generalised"
        return pd.Series("", index=column.index), "birth date removed"
    if is_age(name, spec) and isinstance(spec, NumericColumn):
        factor = per_year(name, spec)
        old = pd.to_numeric(column, errors="coerce") > (OLDEST - 1) * factor
        return column.mask(old, str(min(round(OLDEST * factor), int(spec.bounds[1])))), "age over 89 grouped"
    if is_age(name, spec):
        return column.mask(column.isin(_oldest_levels(spec)), ""), "age over 89 emptied"
    if says(_label(name, spec), POSTCODE):
        three = column.str[:3]
        return three.mask(three.isin(SMALL_ZIP3), "000"), "postcode generalised"
    return column, ""


def patients_over_89(frame: pd.DataFrame, study: Study, pseudonyms: Sequence[str], missing: set[str]) -> frozenset[str]:
    """Patients with an age over 89, or whose births and dates, or age in one row and dates in another, give one.

    Birth columns count though the dictionary leaves them out. Where an age may belong to any of a row's dates, it belongs to the earliest.
    """
    birth = dict.fromkeys(pseudonyms, date.max)
    last = dict.fromkeys(pseudonyms, date.min)
    old: set[str] = set()
    when: list[date | None] = [None] * len(frame)
    for name in _named(study, frame, DateColumn):
        if is_birth(name, study.columns[name]):
            continue
        for i, (patient, text) in enumerate(zip(pseudonyms, texts(frame[name]), strict=True)):
            day = None if text in missing else day_of(text)
            if day:
                when[i] = min(when[i] or day, day)
                last[patient] = max(last[patient], day)
    for name in frame.columns:
        if is_birth(name, study.columns.get(name)):
            for patient, text in zip(pseudonyms, texts(frame[name]), strict=True):
                birth[patient] = min(birth[patient], _born(text))
    for name in _named(study, frame, NumericColumn):
        spec = study.columns[name]
        if not (isinstance(spec, NumericColumn) and is_age(name, spec)):
            continue
        ages = pd.to_numeric(texts(frame[name]), errors="coerce") / per_year(name, spec)
        for patient, age, day in zip(pseudonyms, ages, when, strict=True):
            if OLDEST - 1 < age <= LIFETIME:
                old.add(patient)
            elif day and 0 <= age <= LIFETIME:
                birth[patient] = min(birth[patient], day - timedelta(days=min(age * 365.25, day.toordinal() - 1)))
    return frozenset(old | {p for p in birth if _years(birth[p], last[p]) >= OLDEST})


def is_small(spec: Any) -> bool:
    """Whether a column's levels are counted for the report."""
    return isinstance(spec, LevelColumn | BooleanColumn)


def _label(name: str, spec: Any) -> str:
    return f"{name} {getattr(spec, 'title', None) or ''}"


def _words(text: str) -> str:
    """Lower-case words with one blank between: ``ageInMonths``, ``AGE_MONTHS`` and ``agemonths`` are the same."""
    apart = re.sub(r"([a-z])([A-Z])", r"\1 \2", text)
    low = " ".join(re.findall(r"[^\W\d_]+", apart.lower()))
    return re.sub(rf"\bage(in)?(?=({UNIT})\b)", "age ", low)


def _named(study: Study, frame: pd.DataFrame, kind: type) -> Iterator[str]:
    yield from (n for n, s in study.columns.items() if isinstance(s, kind) and n in frame)


def _born(text: str) -> date:
    """The day of birth; of a form with a year only, the first of that year; else as late as can be, which says nothing."""
    year = re.search(r"(?<!\d)(18|19|20)\d\d(?!\d)", text)
    return day_of(text) or (date(int(year[0]), 1, 1) if year else date.max)


def _years(birth: date, day: date) -> int:
    return day.year - birth.year - ((day.month, day.day) < (birth.month, birth.day))


def _decades(column: pd.Series, spec: NumericColumn) -> pd.Series:
    """First year of the decade: a birth year beside an age and a shifted date would give the shift. The oldest are one group."""
    lowest = (date.today().year - OLDEST) // 10 * 10
    years = pd.to_numeric(column, errors="coerce") // 10 * 10
    grouped = years.clip(lowest).clip(np.ceil(spec.bounds[0]), np.floor(spec.bounds[1]))
    return pd.Series(["" if np.isnan(y) else str(int(y)) for y in grouped], index=column.index, dtype=object)


def _oldest_levels(spec: Any) -> set[str]:
    """Levels that begin at 90 or above, unless the only one is 90 and over."""
    first = {v: int(m[0]) for v in spec.levels if (m := re.search(r"\d+", v))}
    old = {v for v, n in first.items() if n >= OLDEST}
    return set() if len(old) == 1 and first[next(iter(old))] == OLDEST else old
