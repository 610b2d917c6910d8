"""Who shares masks with whom: everybody with everybody, or with ``degree`` neighbours on a ring when there are many sites.

The sparse graph is that of Bell et al. (2020, section 3): sites sit on a ring in the order of a hash of their name and the transcript, and each is a
neighbour of the ``degree / 2`` before and after it (a Harary graph). Nothing secret rests on that order being random, as the coordinator could try
several: a secret's shares need more holders than may collude wherever these sit, and sites refuse survivors that so many could cut in two.
Randomness only makes it unlikely that honest drop-outs end a step, and ``degree`` is chosen for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from math import comb

SMALL = 32  #: up to so many sites the graph is complete
LEAST_DEGREE = 16  #: of a sparse graph
FAILURE = 1e-6  #: largest chance, by the union bound, that as many random drop-outs as the terms allow end a step


@dataclass(frozen=True)
class Graph:
    """The mask graph of one step.

    Attributes:
        ring: every site, in the order of the ring.
        degree: neighbours of a site; ``len(ring) - 1`` is the complete graph.
        threshold: shares that give a site's secret back, of ``degree + 1`` (its neighbours and itself hold one each).
    """

    ring: tuple[str, ...]
    degree: int
    threshold: int

    @staticmethod
    def of(sites: Sequence[str], transcript: bytes, colluding: int, dropouts: int) -> Graph:
        """The graph of these sites."""
        degree, threshold = density(len(sites), colluding, dropouts)
        ring = sorted(sites, key=lambda s: hashlib.sha256(transcript + s.encode()).digest())
        return Graph(tuple(ring), degree, threshold)

    @property
    def complete(self) -> bool:
        """Whether everybody is everybody's neighbour."""
        return self.degree >= len(self.ring) - 1

    def neighbours(self, site: str) -> frozenset[str]:
        """The sites that share a mask with this one."""
        if self.complete:
            return frozenset(self.ring) - {site}
        at, n, reach = self.ring.index(site), len(self.ring), self.degree // 2
        return frozenset(self.ring[(at + step) % n] for step in range(-reach, reach + 1) if step)

    def joined(self, survivors: Set[str], colluding: int) -> bool:
        """Whether the survivors' masks still join them all after any ``colluding`` of them are taken away.

        The ring falls apart only where two separate stretches of ``degree / 2`` neighbours are all gone. Both hold at least as many survivors as the
        emptiest stretch does, so it takes twice that many colluders or more.
        """
        if self.complete:
            return True
        alive, reach = [site in survivors for site in self.ring], self.degree // 2
        count = fewest = sum(alive[:reach])
        for start in range(1, len(alive)):
            count += alive[(start + reach - 1) % len(alive)] - alive[start - 1]
            fewest = min(fewest, count)
        return 2 * fewest > colluding


@lru_cache(maxsize=256)
def density(sites: int, colluding: int, dropouts: int) -> tuple[int, int]:
    """Degree and threshold: the smallest even degree for which random ``dropouts`` end a step with a chance below :data:`FAILURE`.

    The threshold is above ``colluding`` and above a third of the holders; in the complete graph it is what a set of survivors needs in signatures.
    """
    for degree in range(LEAST_DEGREE, sites - 1 if sites > SMALL else 0, 2):
        threshold = max(colluding + 1, (degree + 1) // 3 + 1)
        secret_lost = sites * _at_most(threshold - 1, degree, sites - dropouts, sites)
        cut = sites * _at_most(colluding // 2, degree // 2, sites - dropouts, sites)
        if secret_lost + cut < FAILURE:
            return degree, threshold
    return sites - 1, majority(sites, colluding)


def majority(sites: int, colluding: int) -> int:
    """The least t with 2t > sites + colluding: any two sets of t sites have an honest site in common (Bonawitz et al. 2017, section 6)."""
    return (sites + colluding) // 2 + 1


def _at_most(most: int, drawn: int, good: int, all_: int) -> float:
    """Chance of at most ``most`` good ones among ``drawn`` of ``all_`` (hypergeometric)."""
    ways = sum(comb(good, k) * comb(all_ - good, drawn - k) for k in range(min(most, drawn) + 1))
    return ways / comb(all_, drawn)
