"""What the secure sum's protocol is made of: shares of secrets, streams of masks, and who is whose neighbour."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from scipy.stats import hypergeom

from medsynx.secure_sum import graph as graphs
from medsynx.secure_sum import masks, shamir
from medsynx.secure_sum.graph import Graph, density, majority


def test_shares_give_the_secret_back_and_fewer_do_not():
    secret = bytes(range(32))
    shares = shamir.split(secret, 4, range(1, 8))
    for some in ([1, 2, 3, 4], [4, 5, 6, 7], [1, 3, 5, 7]):
        assert shamir.combine({k: shares[k] for k in some}, 4) == secret
    with pytest.raises(ValueError):
        shamir.combine({k: shares[k] for k in (1, 2, 3)}, 4)
    with contextlib.suppress(ValueError):  # the parabola through three of them does not meet the secret
        assert shamir.combine({k: shares[k] for k in (1, 2, 3)}, 3) != secret
    assert shamir.split(secret, 4, range(1, 8))[1] != shares[1]
    for wrong in (
        (secret[:31], 2, [1, 2]),
        (secret, 3, [1, 2]),
        (secret, 1, [0, 1]),
        (secret, 1, [1, 1]),
        (secret, 0, [1]),
    ):
        with pytest.raises(ValueError):
            shamir.split(*wrong)


def test_the_field_is_a_field():
    p = shamir.PRIME
    assert p.bit_length() == 257 and all(pow(a, p - 1, p) == 1 for a in (2, 3, 5, 7, 11, 13))


@pytest.mark.parametrize("threshold,holders", [(1, [7]), (4, [2, 3, 5, 900, 901]), (51, range(1, 1000, 7))])
def test_one_fraction_is_lagranges_formula_point_by_point(threshold, holders):
    secret = bytes(range(32))
    shares = shamir.split(secret, threshold, holders)
    used, p, value = sorted(shares)[:threshold], shamir.PRIME, 0
    for point in used:
        weight = int.from_bytes(shares[point], "big")
        for other in used:
            if other != point:
                weight = weight * other * pow(other - point, -1, p) % p
        value += weight
    assert (value % p).to_bytes(32, "big") == shamir.combine(shares, threshold) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_extreme_secrets(secret):
    assert shamir.combine(shamir.split(secret, 3, [1, 2, 9]), 3) == secret


def test_the_stream_is_aes_ctr_whatever_the_chunks(monkeypatch):
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    seed = bytes(range(32))
    encryptor = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
    expected = np.frombuffer(encryptor.update(bytes(8 * 1003)), "<u8")
    for chunk in (1000, 16, 2**17):
        monkeypatch.setattr(masks, "CHUNK", chunk)
        vector = np.full(1003, 7, np.uint64)
        masks.mask(vector, seed)
        assert (vector == expected + np.uint64(7)).all()
        masks.mask(vector, seed, add=False)
        assert (vector == 7).all()


@pytest.mark.parametrize("n,degree", [(33, 16), (60, 6), (1000, 52), (9, 8)])
def test_neighbours_are_symmetric_and_as_many_as_the_degree(n, degree):
    ring = Graph(tuple(np.random.default_rng(n).permutation([f"s{k}" for k in range(n)]).tolist()), degree, 4)
    near = {s: ring.neighbours(s) for s in ring.ring}
    assert all(len(x) == degree and s not in x for s, x in near.items())
    assert all(s in near[other] for s in near for other in near[s])


@pytest.mark.parametrize("n,colluding,dropouts", [(60, 3, 10), (200, 10, 60), (1000, 50, 100), (1000, 0, 300)])
def test_degree_and_threshold_are_the_least_that_hold(n, colluding, dropouts):
    """Against SciPy's hypergeometric distribution: the chance is below the bound at this degree, and was not at the one before."""

    def chance(degree):
        threshold = max(colluding + 1, (degree + 1) // 3 + 1)
        lost = hypergeom.cdf(threshold - 1, n, n - dropouts, degree)
        return n * (lost + hypergeom.cdf(colluding // 2, n, n - dropouts, degree // 2)), threshold

    degree, threshold = density(n, colluding, dropouts)
    assert graphs.LEAST_DEGREE < degree < n - 1 and degree % 2 == 0
    assert chance(degree)[0] < graphs.FAILURE and chance(degree)[1] == threshold
    assert chance(degree - 2)[0] >= graphs.FAILURE


def test_the_graph_grows_slowly():
    assert density(32, 3, 9) == (31, majority(32, 3))
    found = {n: density(n, 0, 3 * n // 10)[0] for n in (100, 200, 1000)}
    assert all(20 < k < 70 for k in found.values()) and found[1000] < found[100] * 2
    assert graphs.FAILURE <= 1e-6 and density(100, 0, 0)[0] == graphs.LEAST_DEGREE
