"""Signed integers as residues modulo a power of two: the numbers of every secure sum, masked or not.

A residue that a uniform mask was added to is itself uniform, which floating-point numbers and clipped integers are not; and masks that cancel
leave the exact sum. A total outside [-modulus/2, modulus/2) wraps: a loss of meaning, never of privacy, since wrapping is post-processing of
noised integers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Residues = NDArray[np.uint64]


@dataclass(frozen=True)
class Ring:
    """The integers modulo ``256 ** width``; ``width`` (1 to 8) is the bytes of a number on the wire."""

    width: int

    @property
    def _ones(self) -> np.uint64:
        return np.uint64(2 ** (8 * self.width) - 1)

    @property
    def half(self) -> int:
        """Totals from ``-half`` to ``half - 1`` survive."""
        return 2 ** (8 * self.width - 1)

    def encode(self, values: NDArray[np.int64]) -> Residues:
        """Residues of signed integers."""
        return values.astype(np.int64).view(np.uint64) & self._ones

    def decode(self, residues: Residues) -> NDArray[np.int64]:
        """The signed integer nearest to zero of each residue."""
        unused = np.uint64(64 - 8 * self.width)
        return (residues << unused).view(np.int64) >> np.int64(unused)

    def add(self, vectors: Iterable[Residues]) -> Residues:
        """The sum of vectors of one length. Raises ValueError when there is none."""
        total: Residues | None = None
        for vector in vectors:
            total = vector.copy() if total is None else np.add(total, vector, out=total)
        if total is None:
            raise ValueError("nothing to add")
        return total & self._ones

    def pack(self, residues: Residues) -> NDArray[np.uint8]:
        """Little-endian bytes, shape (numbers, width)."""
        return np.ascontiguousarray(residues.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : self.width])

    def unpack(self, packed: NDArray[Any]) -> Residues:
        """Inverse of :meth:`pack`. Raises ValueError for another shape or type."""
        if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != self.width:
            raise ValueError(f"not numbers of {self.width} bytes")
        wide = np.zeros((len(packed), 8), np.uint8)
        wide[:, : self.width] = packed
        return wide.view("<u8").reshape(-1).astype(np.uint64)


#: Of every step: 2^39 units are 67 million records at the finest count of ``marginals``, and a number takes five bytes.
RING = Ring(5)
