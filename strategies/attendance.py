"""Whom a step asks, and why not the others: a site that is away, or that was late again and again, must not cost every step a deadline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

PATIENCE = 2  #: late answers in a row before a site is set aside


class Attendance:
    """The rule: a site that is not online is not asked (``offline``) and is asked again as soon as it is back. One that was late in
    :data:`PATIENCE` steps running sits out as many steps, twice as many when it is late again after that, and so on (``set-aside``); an answer in
    time clears it, and so does an absence. An answer that comes after its deadline is never used (``late``). No site is set aside while the others
    are fewer than the quorum.
    """

    def __init__(self, quorum: int) -> None:
        self.quorum = quorum
        self.known: set[str] = set()
        self._late: Counter[str] = Counter()
        self._out: Counter[str] = Counter()

    def call(self, online: Iterable[str]) -> tuple[list[str], dict[str, str]]:
        """The sites to ask in the next step, sorted, and why each of the other known ones is not."""
        here = set(online)
        self.known |= here
        for site in self.known - here:  # it was away, not slow
            self._late[site] = self._out[site] = 0
        aside = {site for site in here if self._out[site] > 0}
        if len(here - aside) < self.quorum:
            aside = set()
        self._out.subtract(dict.fromkeys(aside, 1))
        away = dict.fromkeys(self.known - here, "offline")
        return sorted(here - aside), away | dict.fromkeys(aside, "set-aside")

    def note(self, asked: Iterable[str], missing: Mapping[str, str]) -> None:
        """What became of the sites that were asked."""
        for site in asked:
            if missing.get(site) != "late":
                self._late[site] = self._out[site] = 0
                continue
            self._late[site] += 1
            if self._late[site] >= PATIENCE:
                self._out[site] = PATIENCE * 2 ** (self._late[site] - PATIENCE)
