"""The estimation engine against brute force on domains small enough to write out whole."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynx.generators.graphical.estimate import SMOOTHING, Model, estimate_total, fit
from medsynx.generators.graphical.junction_tree import IMPOSSIBLE, JunctionTree, affordable, tree_cells
from medsynx.generators.graphical.query import Measurement, Query

SIZES = (3, 4, 2, 5, 2)
scopes = st.lists(st.sets(st.integers(0, 4), min_size=1, max_size=3).map(lambda s: tuple(sorted(s))), max_size=7)


def joint_of(tree, potentials):
    """The whole distribution, cell by cell."""
    log = np.zeros(tree.sizes)
    for k, p in enumerate(potentials):
        log = log + p.reshape(_spread(tree, k))
    weight = np.exp(log - log.max())
    return weight / weight.sum()


def _spread(tree, k):
    return tuple(n if a in tree.cliques[k] else 1 for a, n in enumerate(tree.sizes))


def over(joint, scope):
    return joint.sum(axis=tuple(a for a in range(joint.ndim) if a not in scope))


@settings(max_examples=60, deadline=None)
@given(scopes, st.integers(0, 2**32 - 1))
def test_marginals_conditionals_and_pairs_are_those_of_the_written_out_joint(wanted, seed):
    tree, rng = JunctionTree(SIZES, wanted), np.random.default_rng(seed)
    potentials = [rng.normal(0, 2, s) for s in tree.shapes]
    potentials[0] = np.where(rng.random(tree.shapes[0]) < 0.2, IMPOSSIBLE, potentials[0])
    potentials[0].flat[0] = 0.0
    joint = joint_of(tree, potentials)
    marginals, conditionals, log_z = tree.calibrate(potentials)
    assert log_z == pytest.approx(
        np.log(np.exp(sum(p.reshape(_spread(tree, k)) for k, p in enumerate(potentials))).sum())
    )
    for c, m, p, s in zip(tree.cliques, marginals, conditionals, tree.separator, strict=True):
        assert np.allclose(m, over(joint, c), atol=1e-12)
        mass = m.sum(axis=tuple(i for i, a in enumerate(c) if a not in s), keepdims=True)
        assert np.allclose(p * mass, m, atol=1e-12)
    model = Model(tree, {}, 1.0, marginals, conditionals)
    pairs = model.pairs()
    assert set(pairs) == set(itertools.combinations(range(5), 2))
    assert all(np.allclose(t, over(joint, s), atol=1e-12) for s, t in pairs.items())
    for s in wanted:
        assert tree.home(s) is not None and np.allclose(model.marginal(s), over(joint, s), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(scopes)
def test_each_columns_cliques_are_connected(wanted):
    """The running intersection property, without which marginals would not be exact."""
    tree = JunctionTree(SIZES, wanted)
    for a in range(5):
        holding = {k for k, c in enumerate(tree.cliques) if a in c}
        tops = [k for k in holding if tree.parent[k] not in holding]
        assert len(tops) == 1, f"column {a} lives in {len(tops)} separate parts"
    assert sorted(tree.order) == list(range(len(tree.cliques)))


def objective(measurements, sizes, total, smoothing):
    """Half the weighted squared residuals minus smoothing x total x entropy, of log probabilities up to a constant; with its gradient."""
    n = math.prod(sizes)
    cells = np.stack(np.unravel_index(np.arange(n), sizes), axis=1)
    rows, values = [], []
    for m in measurements:
        one_hot = np.stack([m.query.count(cells[[i]], np.ones(1, np.int64)) for i in range(n)], axis=1)
        rows.append(one_hot / m.std)
        values.append(m.values.ravel() / m.std)
    a, y = np.concatenate(rows) * total, np.concatenate(values)

    def f(x):
        p = np.exp(x - x.max())
        p /= p.sum()
        r, log = a @ p - y, np.log(np.maximum(p, 1e-300))
        g = a.T @ r + smoothing * total * (log + 1)
        return 0.5 * r @ r + smoothing * total * float(p @ log), p * (g - p @ g)

    return f


def noisy(joint, query, total, std, rng):
    exact = query.merge(over(joint, query.scope) * total)
    return Measurement(query, exact + rng.normal(0, std, exact.shape), std)


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_reaches_the_optimum_over_all_distributions(seed):
    """Contradicting noisy tables, some of them coarse, of unequal noise: no distribution of the whole domain does better than the fitted one."""
    from scipy.optimize import minimize

    rng, sizes = np.random.default_rng(seed), (3, 4, 2, 3)
    joint = rng.dirichlet(np.full(math.prod(sizes), 0.3)).reshape(sizes)
    coarse = Query((1, 3), ((0, 2), (0, 1)), (4, 3))
    queries = [Query.full(sizes, s) for s in [(0, 1), (1, 2), (2, 3), (0,), (0, 2)]] + [coarse]
    found = [noisy(joint, q, 500, float(rng.uniform(3, 15)), rng) for q in queries]
    model = fit(sizes, found, iterations=2000)
    f = objective(found, sizes, model.total, SMOOTHING)
    best = minimize(
        f, np.zeros(72), jac=True, method="L-BFGS-B", options={"maxiter": 20_000, "ftol": 1e-15, "gtol": 1e-9}
    )
    mine = np.zeros(sizes)
    for k in range(len(model.tree.cliques)):
        mine = mine + np.log(np.maximum(model.conditionals[k], 1e-300)).reshape(_spread(model.tree, k))
    assert f(mine.ravel())[0] <= best.fun + 1e-3 * abs(best.fun)
    assert np.exp(mine).sum() == pytest.approx(1)


def test_exact_tables_are_met_and_less_noisy_ones_weigh_more():
    rng = np.random.default_rng(0)
    joint = rng.dirichlet(np.ones(24)).reshape(2, 3, 4)
    sizes = joint.shape
    exact = [noisy(joint, Query.full(sizes, s), 1000, 0.0, rng) for s in [(0, 1), (1, 2)]]
    model = fit(sizes, exact, iterations=3000)
    assert model.total == pytest.approx(1000)
    assert all(np.abs(model.marginal(m.query.scope) * 1000 - m.values).max() < 0.1 for m in exact)
    q = Query.full(sizes, (0,))
    two = [Measurement(q, np.array([900.0, 100.0]), 1.0), Measurement(q, np.array([100.0, 900.0]), 10.0)]
    share = fit(sizes, two, iterations=500).marginal((0,))[0]
    assert share == pytest.approx((900 * 100 + 100) / 101 / 1000, abs=5e-3)


def test_the_total_weighs_tables_by_their_noise():
    q, fine = Query.full((2, 50), (0,)), Query.full((2, 50), (0, 1))
    found = estimate_total([Measurement(q, np.array([60.0, 40.0]), 1.0), Measurement(fine, np.full((2, 50), 2.0), 1.0)])
    assert found == pytest.approx((100 / 2 + 200 / 100) / (1 / 2 + 1 / 100))


def test_masked_cells_get_exactly_nothing():
    rng = np.random.default_rng(1)
    sizes = (3, 3, 2)
    mask = np.where(np.tri(3, k=-1) > 0, IMPOSSIBLE, 0.0)  # a > b
    found = [
        Measurement(Query.full(sizes, s), rng.normal(100, 5, tuple(sizes[a] for a in s)), 5.0) for s in [(0, 2), (1, 2)]
    ]
    model = fit(sizes, found, iterations=200, masks={(0, 1): mask})
    assert (model.marginal((0, 1))[mask < 0] == 0).all() and model.marginal((0, 1)).sum() == pytest.approx(1)


def test_scopes_beyond_the_cell_limit_are_dropped_least_informative_first():
    sizes = (10, 10, 10, 10)
    ring = [(0, 1), (1, 2), (2, 3), (0, 3)]
    assert affordable(sizes, [], ring, 10_000) == ring
    assert affordable(sizes, [], ring, 500) == ring[:3], "the ring would need two cliques of 1,000 cells"
    assert tree_cells(sizes, ring[:3]) == 300
    assert affordable(sizes, [], ring, 500, most=1) == ring[:1]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_spread_is_the_transpose_of_merge(seed):
    rng = np.random.default_rng(seed)
    starts = tuple(
        (0, *sorted(rng.choice(np.arange(1, k), rng.integers(0, k), replace=False).tolist())) for k in (5, 4)
    )
    q = Query((0, 1), starts, (5, 4))
    x, y = rng.normal(size=(5, 4)), rng.normal(size=q.shape)
    assert np.vdot(q.merge(x), y) == pytest.approx(np.vdot(x, q.spread(y)))
    codes = np.stack([rng.integers(0, 5, 30), rng.integers(0, 4, 30)], axis=1)
    full = Query.full((5, 4), (0, 1)).count(codes, np.ones(30, np.int64)).reshape(5, 4)
    assert (q.merge(full.astype(float)).ravel() == q.count(codes, np.ones(30, np.int64))).all()
