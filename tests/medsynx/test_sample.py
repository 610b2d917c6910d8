"""Drawing rows from clique tables: the right distribution, under conditions too, reproducibly and fast."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynx import codec
from medsynx.errors import MedsynxError
from medsynx.generators.graphical.junction_tree import JunctionTree
from medsynx.generators.graphical.sample import CliqueTable, CliqueTreeSampler, condition
from medsynx.samplers import open_sampler

SIZES = (3, 4, 2, 5, 2)
scopes = st.lists(st.sets(st.integers(0, 4), min_size=1, max_size=3).map(lambda s: tuple(sorted(s))), max_size=6)


def tables_of(sizes, wanted, seed, zeros=0.0):
    """Random clique tables."""
    rng, tree = np.random.default_rng(seed), JunctionTree(sizes, wanted)
    potentials = [np.where(rng.random(s) < zeros, -1e6, rng.normal(0, 1.5, s)) for s in tree.shapes]
    conditionals = tree.calibrate(potentials)[1]
    place = {j: k for k, j in enumerate(tree.order)}
    tables = [
        CliqueTable(
            tree.cliques[j],
            tree.separator[j],
            None if tree.parent[j] is None else place[tree.parent[j]],
            conditionals[j],
        )
        for j in tree.order
    ]
    return tables


def joint_of(tables, sizes):
    joint = np.ones(sizes)
    for t in tables:
        joint = joint * t.table.reshape([n if a in t.columns else 1 for a, n in enumerate(sizes)])
    return joint


@settings(max_examples=60, deadline=None)
@given(scopes, st.integers(0, 2**32 - 1), st.sets(st.integers(0, 4), max_size=5))
def test_conditions_on_any_columns_are_exact(wanted, seed, columns):
    tables = tables_of(SIZES, wanted, seed)
    joint = joint_of(tables, SIZES)
    rng = np.random.default_rng(seed)
    allowed = {a: rng.random(SIZES[a]) < 0.5 for a in columns}
    for mask in allowed.values():
        mask[rng.integers(len(mask))] = True
    right = joint.copy()
    for a, mask in allowed.items():
        right = right * mask.reshape([-1 if b == a else 1 for b in range(5)])
    assert np.allclose(joint_of(condition(tables, allowed), SIZES), right / right.sum(), atol=1e-12)


def test_rows_follow_the_joint_and_never_fall_in_a_cell_without_mass():
    for seed in range(5):
        tables = tables_of(SIZES, [(0, 1, 2), (2, 3), (3, 4)], seed, zeros=0.3)
        joint = joint_of(tables, SIZES)
        rows = CliqueTreeSampler(tables, SIZES).sample(200_000, np.random.default_rng(seed))
        seen = np.bincount(np.ravel_multi_index(rows.T, SIZES), minlength=joint.size).reshape(SIZES) / len(rows)
        assert (seen[joint < 1e-12] == 0).all()
        assert np.abs(seen - joint).sum() / 2 < 0.01


def test_a_block_of_rows_is_closer_to_the_model_than_independent_rows():
    tables = tables_of(SIZES, [(0, 1, 2), (2, 3), (3, 4)], 0)
    joint = joint_of(tables, SIZES)
    pair = joint.sum(axis=(2, 3, 4))
    even, loose = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = CliqueTreeSampler(tables, SIZES).sample(2000, rng)
        even.append(np.abs(np.bincount(rows[:, 0] * 4 + rows[:, 1], minlength=12) / 2000 - pair.ravel()).sum())
        loose.append(np.abs(rng.multinomial(2000, pair.ravel() / pair.sum()) / 2000 - pair.ravel()).sum())
    assert np.mean(even) < 0.5 * np.mean(loose)
    one = [CliqueTreeSampler(tables, SIZES).sample(1, np.random.default_rng(s))[0, 0] for s in range(3000)]
    margin = joint.sum(axis=(1, 2, 3, 4))
    assert np.abs(np.bincount(one, minlength=3) / 3000 - margin).max() < 0.04, "a single row follows the model too"


def test_same_seed_same_rows_under_conditions_too():
    tables = tables_of(SIZES, [(0, 1), (1, 2, 3)], 4)
    sampler = CliqueTreeSampler(tables, SIZES).given({2: np.array([True, False])})
    first, again = (sampler.sample(999, np.random.default_rng(5)) for _ in range(2))
    assert (first == again).all() and (first[:, 2] == 0).all()
    assert (first != sampler.sample(999, np.random.default_rng(6))).any()


def test_impossible_conditions_are_refused():
    only = np.array([[0.5, 0.0], [0.0, 0.5]])
    sampler = CliqueTreeSampler([CliqueTable((0, 1), (), None, only)], (2, 2))
    with pytest.raises(MedsynxError, match="together"):
        sampler.given({0: np.array([True, False]), 1: np.array([False, True])})


def test_fourteen_columns_draw_a_million_rows_a_second():
    """CPU seconds of this process; the bar is half the promise, for slow machines. benchmarks/tabular/sampling.py has the figure."""
    sizes = (16, 10, 8, 17, 8, 15, 7, 6, 4, 12, 9, 14, 12, 4)
    wanted = [(0, 1, 3), (3, 5, 7), (5, 6, 7), (2, 7, 8), (8, 9, 10), (9, 10, 11), (11, 12), (4, 6, 13), (0, 3, 13)]
    sampler, rng = CliqueTreeSampler(tables_of(sizes, wanted, 0), sizes), np.random.default_rng(0)
    sampler.sample(10_000, rng)
    began = time.process_time()
    sampler.sample(500_000, rng)
    assert 500_000 / (time.process_time() - began) > 500_000


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: m["tables"][0].update(columns=[0, 9]),
        lambda m: m["tables"][0].update(parent=0),
        lambda m: m["tables"][0].update(columns=[0, 0]),
        lambda m: m["tables"].pop(),
        lambda m: m["tables"][0].update(given=[1]),
    ],
)
def test_tables_that_are_not_a_tree_are_refused(study, spoil):
    import io

    sizes = codec.sizes(study)
    tables = tables_of(sizes, [(0, 1), (1, 2), (3, 4)], 0)
    buffer = io.BytesIO()
    np.savez(buffer, **{f"t{k}": t.table for k, t in enumerate(tables)})
    entries = [
        {"columns": list(t.columns), "given": list(t.given), "parent": t.parent, "table": f"t{k}"}
        for k, t in enumerate(tables)
    ]
    manifest = {"kind": "clique-tree", "file": "f", "tables": entries}
    open_sampler(manifest, {"f": buffer.getvalue()}, study).sample(3, np.random.default_rng(0))
    spoil(manifest)
    with pytest.raises(MedsynxError) as caught:
        open_sampler(manifest, {"f": buffer.getvalue()}, study)
    assert caught.value.code == "bundle-unreadable"


def test_conditions_in_the_dictionarys_words(study):
    masks = codec.allowed({"age": {"min": 42, "max": 66}, "sex": ["F", None], "marker": 2.5, "ill": True}, study)
    assert masks[0].tolist() == [False, False, True, True, False, False, False]
    assert masks[1].tolist() == [True, False, False, True]
    assert masks[3].tolist() == [False, False, True, False, False]
    assert masks[4].tolist() == [False, True, False, False]
    for wrong in (
        {"shoe": 1},
        {"sex": "X"},
        {"age": 3},
        {"age": {"min": 50, "max": 51}},
        {"age": "old"},
        {"sex": {"min": 1}},
    ):
        with pytest.raises(MedsynxError) as caught:
            codec.allowed(wrong, study)
        assert caught.value.code == "condition-invalid"
