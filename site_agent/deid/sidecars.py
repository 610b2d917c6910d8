"""JSON sidecars (BIDS): numbers and words of the vocabulary stay under keys we know; everything else goes."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

from site_agent.deid.keys import SiteKey
from site_agent.deid.model import Cleaned
from site_agent.deid.naming import needles_of, output_name, patient_of
from site_agent.deid.profile import Profile
from site_agent.deid.quarantine import Quarantine
from site_agent.deid.reader import Needles
from site_agent.deid.recipe import Recipe
from site_agent.deid.values import SHAPES, group_age, shift
from site_agent.deid.vocabulary import OLDEST, Vocabulary

DEPTH = 8
KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
KEY_DIGITS = 3  # EchoTime1, B0Field, but no date and no number of a patient
LONGEST = 1_000_000  # a whole number of seven digits is an identifier or a date
YEAR = {"months": 12, "weeks": 52, "days": 365}  # of an age whose key names such a unit
DROP = object()
IDENTIFYING = re.compile(
    r"(name|id|identifier|subject|participant|uid|number|address|phone|mail|birth|physician|operator|institution|station|serial|comment|user|path|file)s?$",
    re.I,
)
TECHNICAL = re.compile(r"(InstanceNumber|SeriesNumber|AcquisitionNumber|EchoNumber|NumberOf\w+|\w+Names?Label)$")


def looks_like_sidecar(text: str) -> bool:
    """A JSON object."""
    return text.lstrip("\ufeff \t\r\n").startswith("{")


def clean_sidecar(data: bytes, source: str, recipe: Recipe, profile: Profile, key: SiteKey) -> Cleaned:
    """De-identify one sidecar. Raises Quarantine."""
    try:
        body = json.loads(data.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise Quarantine("sidecar-unusual") from None
    if not isinstance(body, dict):
        raise Quarantine("sidecar-unusual")
    patient = patient_of(source, key)
    cleaner = _Cleaner(recipe, profile, key.days(patient.pseudonym), needles_of(source))
    out = json.dumps(cleaner.object(body, 0), indent=2, sort_keys=True).encode()
    return Cleaned(
        data=out,
        suffix=".json",
        name=output_name(source, key),
        kind="sidecar",
        patient=patient,
        actions=cleaner.actions,
        kept=cleaner.kept,
        needles=cleaner.needles,
        kept_dates=frozenset(cleaner.dates),
    )


class _Cleaner:
    def __init__(self, recipe: Recipe, profile: Profile, days: int, needles: Needles) -> None:
        self.recipe, self.profile, self.days, self.needles = recipe, profile, days, needles
        self.vocabulary = Vocabulary(recipe.vocabulary)
        self.actions: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.dates: set[str] = set()

    def object(self, body: dict[str, Any], depth: int) -> dict[str, Any]:
        out = {}
        for name, value in body.items():
            new = self._value(name, value, depth) if self._known_key(name) else DROP
            if new is DROP:
                self._harvest(value)
                self.actions["sidecar entry removed"] += 1
            else:
                out[name] = new
                self.kept[name] += 1
        return out

    def _known_key(self, name: str) -> bool:
        """A keyword of DICOM, or nothing but words of the vocabulary in CamelCase; and neither may point at a person."""
        if not KEY.fullmatch(name) or sum(c.isdigit() for c in name) > KEY_DIGITS:
            return False
        tag = tag_for_keyword(name)
        if not tag and not self.vocabulary.knows(" ".join(_words(name))):
            return False
        action = self.profile.action(tag) if tag else None
        if action and action[0] in "XZDU":
            return False
        if tag and dictionary_VR(tag) in ("PN", "UI", "UR"):
            return False
        return bool(TECHNICAL.search(name)) or not IDENTIFYING.search(name)

    def _value(self, name: str, value: Any, depth: int) -> Any:
        """The value as it may stay, or DROP."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return self._number(name, value)
        if isinstance(value, str):
            new = self._text(name, value) if value.isprintable() else None
            return DROP if new is None else new
        if isinstance(value, list) and depth < DEPTH:
            items = [self._value(name, v, depth + 1) for v in value]
            return DROP if any(i is DROP for i in items) else items
        if isinstance(value, dict) and depth < DEPTH:
            return self.object(value, depth + 1)
        return DROP

    def _number(self, name: str, value: float) -> Any:
        if not abs(value) < LONGEST:  # infinities and what is no number fail this too
            return DROP
        oldest = _oldest(name)
        return value if oldest is None or value < oldest else oldest

    def _text(self, name: str, value: str) -> str | None:
        if _oldest(name) is not None:
            if SHAPES["AS"].fullmatch(value):
                return group_age(value)
            return None  # an age in words of its own
        day = re.match(r"(\d{4})-?(\d\d)-?(\d\d)", value)
        if day or "date" in name.lower():
            moved = shift("".join(day.groups()), self.days) if day else None
            if moved is None or "retain_longitudinal_modified_dates" not in self.recipe.options:
                return None
            self.needles.add_date("".join(day.groups()) if day else "")
            self.dates.add(moved)
            self.actions["date shifted"] += 1
            time = re.fullmatch(r"[T ]?(\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?", value[day.end() :]) if day else None
            return f"{moved[:4]}-{moved[4:6]}-{moved[6:]}" + (f"T{time[1]}" if time and time[1] else "")
        if "time" in name.lower() and SHAPES["TM"].fullmatch(value):
            return value
        return value if self.vocabulary.knows(value) else None

    def _harvest(self, value: Any) -> None:
        if isinstance(value, dict):
            for v in value.values():
                self._harvest(v)
        elif isinstance(value, list):
            for v in value:
                self._harvest(v)
        elif isinstance(value, str):
            self.needles.add_text(value)
            if re.match(r"\d{4}-\d\d-\d\d", value):
                self.needles.add_date(value[:10].replace("-", ""))
        elif isinstance(value, int) and not isinstance(value, bool):
            self.needles.add_text(str(value))
        elif isinstance(value, float) and value.is_integer():
            self.needles.add_text(str(int(value)))


def _words(name: str) -> list[str]:
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)


def _oldest(name: str) -> int | None:
    """Where the last group of an age begins, in the unit its key names; None for what is no age."""
    words = {w.lower() for w in _words(name)}
    return OLDEST * next((n for unit, n in YEAR.items() if unit in words), 1) if words & {"age", "ages"} else None
