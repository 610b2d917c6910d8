"""Shamir's secret sharing (1979) of 32-byte secrets over one prime field.

PyCryptodome's ``Shamir``, which Flower uses, is sound but splits 16 bytes at a time with bitwise polynomial products in Python: putting one 32-byte
secret together from 100 shares takes it seconds, and a sum over 200 sites needs hundreds. The field of a prime just above 2^256 holds a whole secret.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from math import prod

PRIME = 2**256 + 297  #: the smallest prime above 2^256
SHARE_BYTES = 33


def split(secret: bytes, threshold: int, holders: Iterable[int]) -> dict[int, bytes]:
    """Shares of a 32-byte secret by holder; any ``threshold`` of them give it back and fewer say nothing about it.

    Args:
        holders: distinct positive numbers, the points at which the polynomial is evaluated.
    """
    points = list(holders)
    if len(secret) != 32 or not 1 <= threshold <= len(points) or len(set(points)) != len(points) or min(points) < 1:
        raise ValueError("32 bytes, distinct positive holders and a threshold they can reach")
    polynomial = [secrets.randbelow(PRIME) for _ in range(threshold - 1)] + [int.from_bytes(secret, "big")]
    out = {}
    for point in points:
        value = 0
        for coefficient in polynomial:
            value = (value * point + coefficient) % PRIME
        out[point] = value.to_bytes(SHARE_BYTES, "big")
    return out


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret from at least ``threshold`` shares (the first of them are used).

    Raises:
        ValueError: too few shares, or shares that do not belong together.
    """
    points = sorted(shares)[:threshold]
    if len(points) < threshold or any(len(shares[p]) != SHARE_BYTES for p in points):
        raise ValueError(f"fewer than {threshold} shares")
    above, below = 0, 1  # Lagrange's formula at zero as one fraction: a secret costs one inversion, not one a share
    for point in points:
        factor = point * prod(other - point for other in points if other != point) % PRIME
        above = (above * factor + int.from_bytes(shares[point], "big") * below) % PRIME
        below = below * factor % PRIME
    secret = prod(points) * above * pow(below, -1, PRIME) % PRIME
    if secret >= 2**256:
        raise ValueError("shares that do not belong together")
    return secret.to_bytes(32, "big")
