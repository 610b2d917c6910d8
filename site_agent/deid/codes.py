"""Coded entries: a code stays when anybody can look it up or prove it, else it is a local identifier."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

#: schemes whose codes pydicom knows by another of their names
ALIASES = {"99SDM": "SRT", "SNM3": "SRT"}
BI_RADS = re.compile(r"II\.AC\.[a-z0-9.]{1,12}|\d{1,2}[a-z]?")
#: UCUM (https://ucum.org/ucum): terms joined by . and /, an atom with a metric prefix, a small exponent
ATOMS = (
    "m|s|g|rad|K|C|cd|mol|sr|Hz|N|Pa|J|W|A|V|F|Ohm|S|Wb|Cel|T|H|lm|lx|Bq|Gy|Sv|L|l|ar|eV|u|bar|t|B|Np|By|bit|U|kat|G|Ci|R|RAD|REM|"
    r"min|h|d|wk|mo|a|deg|'|''|%|\[ppth\]|\[ppm\]|\[pH\]|\[in_i\]|\[ft_i\]|\[lb_av\]|\[degF\]|\[diop\]|\[hnsf'U\]|\[arb'U\]|\[iU\]|m\[Hg\]|m\[H2O\]|"
    r"\[pi\]|10\*|10\^|1"
)
PREFIX = "Y|Z|E|P|T|G|M|k|h|da|d|c|m|u|n|p|f|a|z|y"
TERM = rf"(?:(?:{PREFIX})?(?:{ATOMS})(?:[+-]?\d{{1,2}})?(?:\{{[^{{}}]*\}})?|\{{[^{{}}]*\}})"
UCUM = re.compile(rf"/?{TERM}(?:[./]{TERM}){{0,5}}")
#: dihedral group D5, its permutation and inverses (J. Verhoeff, Error Detecting Decimal Codes, 1969)
D5 = "0123456789 1234067895 2340178956 3401289567 4012395678 5987604321 6598710432 7659821043 8765932104 9876543210".split()
PERMUTATION = "0123456789 1576283094 5803796142 8916043527 9453126870 4286573901 2793806415 7046913258".split()


@cache
def _dictionary() -> dict[tuple[str, str], str]:
    from importlib import import_module

    concepts = import_module("pydicom.sr._concepts_dict").concepts
    known = {
        (scheme, code): meaning
        for scheme, keywords in concepts.items()
        for codes in keywords.values()
        for code, (meaning, _) in codes.items()
    }
    for code, concept in import_module("pydicom.sr._snomed_dict").mapping["SRT"].items():
        known["SRT", code] = known.get(("SCT", concept), "")
    return known


def meaning_of(scheme: str, code: str) -> str:
    """The dictionary's meaning of a code; empty when it has none."""
    return _dictionary().get((ALIASES.get(scheme, scheme), code), "")


def is_public(scheme: str, code: str, knows: Callable[[str], bool]) -> bool:
    """Whether a code is in PS3.16 as pydicom ships it, or carries its scheme's own proof: SNOMED CT and LOINC check digits, UCUM's grammar.

    Args:
        scheme, code: CodingSchemeDesignator and CodeValue.
        knows: whether an annotation of UCUM, which may be any text, may stay.
    """
    if (ALIASES.get(scheme, scheme), code) in _dictionary():
        return True
    if scheme == "SCT":
        return re.fullmatch(r"\d{6,18}", code) is not None and verhoeff(code)
    if scheme == "LN":
        return re.fullmatch(r"\d{1,6}-\d", code) is not None and luhn(code.replace("-", ""))
    if scheme == "UCUM":
        return UCUM.fullmatch(code) is not None and all(map(knows, re.findall(r"\{(.*?)\}", code)))
    return scheme == "BI" and BI_RADS.fullmatch(code) is not None


def verhoeff(digits: str) -> bool:
    """Whether the last digit checks the others, as in a SNOMED CT identifier."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = int(D5[check][int(PERMUTATION[place % 8][int(digit)])])
    return check == 0


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others modulo 10, as in a LOINC code."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (1 + place % 2)
        total += doubled - 9 * (doubled > 9)
    return total % 10 == 0
