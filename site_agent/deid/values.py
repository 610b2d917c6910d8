"""Values of attributes: their types, their shapes as text, and how a date moves. Knows the standard, not the profile."""

from __future__ import annotations

import datetime as dt
import re
from functools import cache
from typing import Any

from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue

from site_agent.deid.vocabulary import OLDEST

TEXT = frozenset({"LO", "SH", "ST", "LT", "UT", "UC", "AE", "CS"})
NUMBERS = frozenset({"US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT"})
PROSE = frozenset({"ST", "LT", "UT"})
BINARY = frozenset({"OB", "OW", "OD", "OF", "OL", "OV", "UN"})
#: numbers and times that are text on the wire: what does not have the shape of its type is text, and goes
SHAPES = {
    "IS": re.compile(r"[+-]?\d{1,12}"),
    "DS": re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"),
    "AS": re.compile(r"\d{3}[DWMY]"),
    "TM": re.compile(r"\d{2}(:?\d{2}(:?\d{2}(\.\d{1,6})?)?)?"),
    "UI": re.compile(r"[0-9.]{1,64}"),
}
DATE_TIME = re.compile(r"(\d{8})(\d{0,6}(?:\.\d{1,6})?)([+-]\d{4})?")


def values_of(element: DataElement) -> list[Any]:
    """The element's values as a list; empty when it has none."""
    v = element.value
    if v is None or (isinstance(v, str | bytes) and not v):
        return []
    return list(v) if isinstance(v, list | tuple | MultiValue) else [v]


def shift(value: str, days: int) -> str | None:
    """A DA or DT moved into the past, its time of day and zone kept; None when it is not a date."""
    m = DATE_TIME.fullmatch(
        value.strip().replace(".", "") if re.fullmatch(r"\d{4}\.\d\d\.\d\d", value.strip()) else value.strip()
    )
    if not m:
        return None
    try:
        day = dt.datetime.strptime(m[1], "%Y%m%d") - dt.timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{day.year:04d}{day:%m%d}{m[2]}{m[3] or ''}"


def group_age(age: str) -> str:
    """An AS value with every age over 89 as one."""
    return f"{OLDEST:03d}Y" if is_over_89(age) else age


def is_over_89(age: str) -> bool:
    """Whether an AS value is in years and over 89; anything else is not."""
    return re.fullmatch(r"\d{3}Y", age) is not None and int(age[:3]) >= OLDEST


def canonical(number: str) -> str:
    """A number without what a spelling adds: leading zeros, a decimal point with zeros, a sign; empty when it is not one."""
    m = re.fullmatch(r"[+-]?0*([0-9]+)(\.0*)?", number.strip())
    return m[1] if m else ""


def has_declared_type(e: DataElement) -> bool:
    """Whether a public element has a VR and, for binary numbers, a count of values that PS3.6 gives it; texts may stand in for each other."""
    declared = dictionary_VR(e.tag).split(" or ")
    if e.VR in declared:
        if e.VR not in NUMBERS:
            return True
        most = re.search(r"(\d+|n)$", dictionary_VM(e.tag))
        return most is None or most[1] == "n" or len(values_of(e)) <= int(most[1])
    words = TEXT | frozenset({"IS", "DS"})
    return e.VR in words and bool(words & set(declared))


def number_text(value: Any) -> str:
    """The text a number was read from."""
    return str(getattr(value, "original_string", value)).strip("\0 ")


@cache
def plain_srgb() -> bytes:
    """An ICC profile without a maker, a text or a date of its own; real ones carry all three."""
    from PIL import ImageCms

    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data[24:36] = bytes(12)  # date and time of creation (ICC.1, 7.2.8)
    return bytes(data) + b"\0" * (len(data) % 2)
