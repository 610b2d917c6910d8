"""Text is denied by default: a word stays only if it is in the closed vocabulary (`standard/vocabulary.txt`), a number only if it is short."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

FILE = Path(__file__).parent / "standard" / "vocabulary.txt"
#: a run of letters, a number with its separators, or anything else
PIECES = re.compile(r"[^\W\d_]+|\d+(?:[-./:]\d+)*|[\W_]+|.", re.DOTALL)
#: 512, 1.25, 0.9375, 3-5, 1.5.2: too short for a date, a telephone number or an identifier
SHORT_NUMBER = re.compile(r"\d{1,3}(\.\d{1,4})?|\d{1,2}([-./:]\d{1,2}){1,2}")


@cache
def built_in() -> frozenset[str]:
    """The words of the file."""
    return frozenset(FILE.read_text("utf-8").split())


class Vocabulary:
    """The words that may stay.

    Args:
        extra: words a site's recipe adds.
        denied: words that must not stay in this file: the names its patient and staff carry.
    """

    def __init__(self, extra: Iterable[str] = (), denied: Iterable[str] = ()) -> None:
        self._extra = frozenset(w.lower() for w in extra)
        self._denied = frozenset(denied)

    def word(self, word: str) -> bool:
        """Whether a run of letters may stay."""
        low = word.lower()
        if low in self._denied:
            return False
        return (len(low) == 1 and low.isascii()) or low in built_in() or low in self._extra

    def _piece(self, piece: str) -> bool:
        if piece[0].isdigit():
            digits = sum(c.isdigit() for c in piece)
            return bool(SHORT_NUMBER.fullmatch(piece)) and digits <= 7 and not _date_like(piece)
        return self.word(piece) if piece[0].isalpha() else piece.isascii()

    def knows(self, text: str) -> bool:
        """Whether every piece of the text may stay."""
        pieces = PIECES.findall(text)
        return all(map(self._piece, pieces)) and not _spelled(pieces)

    def clean(self, text: str) -> str:
        """The text without the pieces that may not stay; separators around a gap close up."""
        pieces = [p if p.isspace() or self._piece(p) else "\0" for p in PIECES.findall(text)]
        if _spelled(pieces):
            pieces = ["\0" if p[0].isdigit() or (len(p) == 1 and p.isalpha()) else p for p in pieces]
        kept = re.sub(r"[\W_]*\0[\W_\0]*", " ", "".join(pieces))
        return kept.strip(" _-,;:/^=+.") if "\0" in "".join(pieces) else "".join(pieces).strip()


def _date_like(piece: str) -> bool:
    return len(re.split(r"[-./:]", piece)) == 3 and sum(c.isdigit() for c in piece) >= 5


def _spelled(pieces: list[str]) -> bool:
    """An identifier in short pieces: six or more single letters, or nine or more digits in a row of short numbers."""
    letters = digits = 0
    for p in pieces:
        if p[0].isdigit():
            digits += sum(c.isdigit() for c in p)
        elif p.isalpha() and len(p) > 1:
            digits = letters = 0
        elif p.isalpha():
            letters += 1
        if letters >= 6 or digits >= 9:
            return True
    return False
