"""Text is denied by default: a word stays only if it is in the closed vocabulary (`standard/vocabulary.txt`), a number only if it is short.

Pieces are judged alone first and then beside each other: an identifier in groups, a date in words, an age over 89 or a name behind a title is made
of pieces that would each pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

FILE = Path(__file__).parent / "standard" / "vocabulary.txt"
#: a run of letters, a number with its separators (ASCII digits only), or anything else
PIECES = re.compile(r"[^\W\d_]+|[0-9]+(?:[-./:][0-9]+)*|[\W_]+|.", re.DOTALL)
#: 512, 1.25, 0.9375, 3-5, 1.5.2: too short for a date, a telephone number or an identifier
SHORT_NUMBER = re.compile(r"[0-9]{1,3}(\.[0-9]{1,4})?|[0-9]{1,2}([-./:][0-9]{1,2}){1,2}")
MOST_DIGITS = (
    5  # of one number, and of numbers with no word between them: fewer than an identifier or a telephone number has
)
MOST_FREE_DIGITS = 8  # of all numbers in a value that are bound to no word, as 5mm and TE15 are
MOST_LETTERS = 3  # single letters in a row: more spell a name
OLDEST = 90  # HIPAA Safe Harbor 45 CFR 164.514(b)(2)(i)(C): ages over 89 are one group
YEARS = frozenset("y yo yr yrs year years old jahre jahr ans anni anos aar ar jaar leta let lat vuotta".split())
AGES = frozenset("age aged alter edad eta idade leeftijd".split())
#: what stands before a name; MR in capitals is a modality
TITLES = frozenset(
    "dr prof professor doctor miss mrs ms sir madam herr frau hr mme mlle monsieur madame signora senor senora by".split()
)
CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")


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

    def knows(self, text: str) -> bool:
        """Whether every piece of the text may stay."""
        return all(self._judge(PIECES.findall(text)))

    def clean(self, text: str) -> str:
        """The text without the pieces that may not stay; separators around a gap close up."""
        return self.clean_values([text])[0]

    def clean_values(self, values: Sequence[str]) -> list[str]:
        """The values of one element, cleaned together: an identifier may be spread over them."""
        split = [PIECES.findall(v) if not CONTROL.search(v) else ["\x00"] for v in values]
        keep = iter(self._judge([p for pieces in split for p in [*pieces, " "]]))
        out = []
        for pieces in split:
            kept = "".join(p if k else "\0" for p, k in zip([*pieces, ""], keep, strict=False))
            out.append(re.sub(r"[\W_]*\0[\W_\0]*", " ", kept).strip(" _-,;:/^=+.") if "\0" in kept else kept.strip())
        return out

    def _judge(self, pieces: list[str]) -> list[bool]:
        """For each piece whether it may stay."""
        keep = [self._alone(p) for p in pieces]
        for at in (*_rows(pieces), *_beside_words(pieces)):
            keep[at] = False
        free = [k for k, p in enumerate(pieces) if keep[k] and _is_number(p) and not _bound(pieces, k, self.word)]
        if sum(_digits(pieces[k]) for k in free) > MOST_FREE_DIGITS:
            for at in free:
                keep[at] = False
        return keep

    def _alone(self, piece: str) -> bool:
        if _is_number(piece):
            return bool(SHORT_NUMBER.fullmatch(piece)) and _digits(piece) <= MOST_DIGITS and not _date_like(piece)
        return self.word(piece) if piece[0].isalpha() else piece.isascii() and not CONTROL.search(piece)


def _beside_words(pieces: list[str]) -> Iterator[int]:
    """Ages over 89, and what follows a title."""
    words = [k for k, p in enumerate(pieces) if p[0].isalpha() or _is_number(p)]
    for before, at, after in zip([None, *words], words, [*words[1:], None], strict=False):
        led = pieces[before] if before is not None else ""
        follows = pieces[after].lower() if after is not None else ""
        if pieces[at].isdigit() and OLDEST <= int(pieces[at]) <= 130 and (follows in YEARS or led.lower() in AGES):
            yield at
        if pieces[at][0].isalpha() and (led == "Mr" or led.lower() in TITLES):
            yield at


def _rows(pieces: list[str]) -> Iterator[int]:
    """Numbers with no letter between them that hold too many digits or make a date, and single letters that spell a word."""
    numbers: list[int] = []
    letters: list[int] = []
    for at, piece in enumerate([*pieces, "end"]):
        if _is_number(piece):
            numbers.append(at)
        elif piece[0].isalpha():
            together = ".".join(pieces[k] for k in numbers)
            if len(numbers) > 1 and (_digits(together) > MOST_DIGITS or _date_like(together)):
                yield from numbers
            numbers = []
            if len(piece) == 1:
                letters.append(at)
            else:
                yield from letters if len(letters) > MOST_LETTERS else ()
                letters = []


def _bound(pieces: list[str], at: int, known: Callable[[str], bool]) -> bool:
    """Whether a number touches a word that may stay, or is one side of 512x512."""
    beside = [pieces[k] for k in (at - 1, at + 1) if 0 <= k < len(pieces)]
    return any(p[0].isalpha() and (p.lower() == "x" or (len(p) > 1 and known(p))) for p in beside)


def _is_number(piece: str) -> bool:
    return piece[0].isascii() and piece[0].isdigit()


def _digits(piece: str) -> int:
    return sum(c.isdigit() for c in piece)


def _date_like(piece: str) -> bool:
    """Three numbers of four digits or more: 3/4/65."""
    return len(re.split(r"[-./:]", piece)) == 3 and _digits(piece) >= 4
