"""``mean-embedding`` and ``moments``: what a patient can move, what the coordinator makes of noised sums, what a sampler draws."""

import io
import json

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.programme import priced_plan
from medsynx.errors import MedsynxError
from medsynx.generators import get_family, image_sum
from medsynx.generators.base import ImagePatients, State, Total
from medsynx.generators.image_sum import BATCH, UNIT, ImageSum, in_batches
from medsynx.generators.mean_embedding import random_features
from medsynx.generators.random_features import RandomFeatures, average
from medsynx.image_samplers import open_image_sampler
from medsynx.privacy import MIN_GRID, share_divisor
from medsynx.study import load_study, parse_study
from tests.conftest import RAW_IMAGE_STUDY, stripes

FAMILIES = {"moments": {"frequencies": 4}, "mean-embedding": {"features": 16, "steps": 3, "latent": 4}}
RNG = np.random.default_rng(0)
ODD = [  # images that reach for every bound: flat black and white, a checkerboard, single pixels, noise
    np.zeros((12, 12)),
    np.ones((12, 12)),
    np.indices((12, 12)).sum(axis=0) % 2,
    np.eye(12)[[3]].T @ np.eye(12)[[4]],
    (RNG.random((12, 12)) > 0.5).astype(float),
    RNG.random((12, 12)),
]
OTHERS = stripes(2 * BATCH + 1, 2)


def study_of(family, **more):
    return parse_study({**RAW_IMAGE_STUDY, "family": {"name": family, "parameters": FAMILIES[family]}, **more})


def patients_of(pixels, label, patient=None):
    images = np.asarray(pixels, np.float32).reshape(-1, 1, 12, 12)
    number = np.arange(len(images)) if patient is None else np.asarray(patient)
    return ImagePatients(np.asarray(label, np.int64).reshape(-1, 1), number, images)


def total(family, study, step, state, extra):
    """The sum of some ordinary patients and of one with the images ``extra`` (kind, label)."""
    pixels, label = OTHERS
    images = np.concatenate([np.array([ODD[k] for k, _ in extra]).reshape(-1, 12, 12), pixels / 255])
    person = np.concatenate([np.zeros(len(extra), int), np.arange(len(pixels)) + bool(extra)])
    priced = priced_plan(study).find(step.name)
    order = np.random.default_rng(len(extra)).permutation(len(images))  # the patient's images lie anywhere
    number = {p: k for k, p in enumerate(dict.fromkeys(person[order]))}
    rows = patients_of(
        images[order], np.concatenate([[c for _, c in extra], label])[order], [number[p] for p in person[order]]
    )
    return get_family(family).contribute(study, priced, state, rows, {}).arrays["sum"]


STATES = {  # means as a coordinator - honest or not - might send them
    "honest": np.zeros((2, 16), np.float32),
    "far away": np.full((2, 16), 1e6, np.float32),
}
SUMS = {}


@pytest.mark.parametrize(("family", "step"), [("mean-embedding", 0), ("moments", 0), ("moments", 1)])
@settings(max_examples=12, deadline=None)
@given(
    extra=st.lists(st.tuples(st.integers(0, len(ODD) - 1), st.integers(0, 1)), min_size=1, max_size=9),
    means=st.sampled_from(sorted(STATES)),
)
def test_a_patient_moves_the_sum_by_no_more_than_its_sensitivity(family, step, extra, means):
    """Any images, any number of them, any labels; exact integers, and everybody else's part of the sum stays the same to the last unit."""
    study, state = study_of(family), State({"class means": STATES[means]})
    planned = get_family(family).plan(study)[step]
    at = (family, step, means)
    if at not in SUMS:
        SUMS[at] = total(family, study, planned, state, [])
    moved = total(family, study, planned, state, extra) - SUMS[at]
    assert (moved.astype(object) ** 2).sum() <= planned.sensitivity.l2**2
    assert np.abs(moved).max() <= planned.sensitivity.linf
    assert len(moved) == planned.size


def test_the_bound_is_reached_by_one_image_and_by_many():
    """So the noise is not too large either, and a patient of nine images counts as one."""
    study = study_of("mean-embedding")
    step = get_family("mean-embedding").plan(study)[0]
    base = total("mean-embedding", study, step, State(), [])
    for extra in ([(5, 1)], [(5, 1)] * 9):
        moved = total("mean-embedding", study, step, State(), extra) - base
        assert 0.999 < np.sqrt((moved**2).sum()) / step.sensitivity.l2 <= 1


def test_a_patient_is_averaged_as_one_wherever_the_batches_end():
    study = study_of("mean-embedding")
    cargo, features = ImageSum(64, 2), random_features(study)
    images = np.concatenate([stripes(4 * BATCH - 1, 2)[0] / 255, np.array([ODD[5]] * 9)])
    person = np.concatenate([np.arange(4 * BATCH - 1), np.full(9, 4 * BATCH - 1)])
    label = np.zeros(len(images), int)
    with_them = cargo.add_up(patients_of(images, label, person), lambda x, _: features(x))
    without = cargo.add_up(patients_of(images[:-9], label[:-9], person[:-9]), lambda x, _: features(x))
    assert ((with_them - without) ** 2).sum() <= cargo.bound**2


def test_an_image_has_the_same_features_whoever_is_beside_it():
    """To the last bit: a product of another shape may add up in another order."""
    features = RandomFeatures((28, 28, 1), 100, seed=1)
    images = np.random.default_rng(3).random((BATCH + 40, 1, 28, 28), np.float32)
    label = np.zeros(len(images), np.int64)
    every = in_batches(lambda x, _: features(x), images, label)
    for at in (slice(0, 1), slice(5, 9), slice(40, BATCH + 33), slice(1, None), slice(3, None)):
        assert (in_batches(lambda x, _: features(x), images[at], label[at]) == every[at]).all()


@pytest.mark.parametrize("shape", [(28, 28, 1), (40, 31, 3)])
def test_products_over_many_images_are_exact(shape):
    """In whole numbers, so that no processor adds up another result; black, white and noise."""
    features = RandomFeatures(shape, 9, seed=1)
    for view, most in (("pixels", 1), ("scatter", 4)):
        wide = len(features.matrices[view])
        values = np.stack([np.zeros(wide), np.full(wide, most), RNG.random(wide) * most]).astype(np.float32)
        whole = [[int(v) for v in np.rint(row * np.float32(2**18))] for row in values]
        told = [[int(w) for w in column] for column in features.whole[view].T]
        exact = [[sum(a * b for a, b in zip(row, column, strict=True)) / 2**38 for column in told] for row in whole]
        assert (features._exact(values, view) == np.float32(exact)).all()


@pytest.mark.parametrize("value", [50.0, 1e30, np.inf, np.nan])
def test_features_that_break_their_promise_are_cut_to_the_bound(value):
    cargo = ImageSum(8, 2)
    pixels, label = stripes(40, 3)
    rows = patients_of(pixels / 255, label, np.arange(40) // 4)
    found = [
        cargo.add_up(
            patients_of(rows.images[i : i + 4], label[i : i + 4], np.zeros(4, int)),
            lambda x, _: np.full((len(x), 8), value),
        )
        for i in range(0, 40, 4)
    ]
    assert all((v.astype(object) ** 2).sum() <= cargo.bound**2 for v in found)
    assert (cargo.add_up(rows, lambda x, _: np.full((len(x), 8), value)) == sum(found)).all()


def test_counts_are_of_patients():
    cargo = ImageSum(3, 2)
    rows = patients_of(np.zeros((6, 12, 12)), [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 2])
    _, counts = cargo.split(cargo.add_up(rows, lambda x, _: np.zeros((len(x), 3))))
    assert counts == pytest.approx([2 / 3 + 1, 1 / 3 + 1], abs=1e-3)


def test_sums_of_skewed_sites_are_the_central_sum():
    for name in FAMILIES:
        study = study_of(name)
        priced = priced_plan(study).steps[0]
        pixels, label = stripes(700, 9)
        sites = [np.flatnonzero(label == 0)[:200], np.flatnonzero(label == 0)[200:], np.flatnonzero(label == 1)]

        def part(at, study=study, priced=priced, name=name, pixels=pixels, label=label):
            return (
                get_family(name)
                .contribute(study, priced, State(), patients_of(pixels[at] / 255, label[at]), {})
                .arrays["sum"]
            )

        assert (sum(part(at) for at in sites) == part(np.arange(700))).all(), "to the last unit"


@pytest.mark.parametrize("shape", [(28, 28, 1), (12, 12, 1), (31, 40, 3)])
def test_features_have_norm_one_and_are_alike_in_numpy_and_torch(shape):
    import torch

    features = RandomFeatures(shape, 24, seed=5)
    images = np.random.default_rng(1).random((6, shape[2], *shape[:2]), np.float32)
    images[0] = 0
    found = features(images)
    assert found.shape == (6, features.width) == (6, 96)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(6), abs=1e-5)
    assert np.abs(features.for_torch("cpu")(torch.from_numpy(images)).numpy() - found).max() < 1e-4
    assert np.abs(RandomFeatures(shape, 24, seed=6)(images) - found).max() > 0.05, "the seed decides"


def test_features_are_public():
    study = study_of("mean-embedding")
    one, two = (random_features(study).matrices["pixels"] for _ in range(2))
    assert (one == two).all()
    other = random_features(study_of("mean-embedding", title="another study")).matrices["pixels"]
    assert not np.allclose(one, other)


def test_averages_of_lines():
    assert average(5, 2) @ np.array([1, 1, 6, 2, 2]) == pytest.approx([(1 + 1 + 3) / 2.5, (3 + 2 + 2) / 2.5])


def run(study, pixels, label, patient=None, seed=0, noise=True):
    """A whole run with the planned noise, drawn here with a seed."""
    family, plan, state, rng = get_family(study.family.name), priced_plan(study), State(), np.random.default_rng(seed)
    while (step := family.next_step(study, state)) is not None:
        priced = plan.find(step.name)
        vector = family.contribute(study, priced, state, patients_of(pixels, label, patient), {}).arrays["sum"]
        std = priced.noise_std if noise else 0.0
        drawn = np.round(rng.normal(0, std, step.size)).astype(np.int64)
        state = family.combine(study, priced, state, Total({"sum": vector + drawn}, std, 1))
        json.dumps(state.facts)
    return family.export(study, state)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_synthetic_images_look_like_their_class(family):
    """Which way the stripes run can be told from the mean squared slope."""
    parameters = {"features": 64, "steps": 40, "latent": 8} if family == "mean-embedding" else FAMILIES[family]
    study = parse_study({**RAW_IMAGE_STUDY, "family": {"name": family, "parameters": parameters}})
    pixels, label = stripes(1500, 4)
    artefact = run(study, pixels / 255, label)
    sampler = open_image_sampler(artefact.sampler, artefact.files, study)
    assert sampler.made == [0, 1] and sampler.shares.sum() == pytest.approx(1, abs=1e-5)
    made = sampler.sample(300, np.random.default_rng(0))
    assert made.pixels.shape == (300, 1, 12, 12) and made.pixels.dtype == np.float32
    assert made.pixels.min() >= 0 and made.pixels.max() <= 1
    down = (np.diff(made.pixels, axis=2) ** 2).mean(axis=(1, 2, 3))
    across = (np.diff(made.pixels, axis=3) ** 2).mean(axis=(1, 2, 3))
    assert ((across > down) == (made.label == 1)).mean() > 0.9
    assert made.pixels[made.label == 0].std(axis=0).mean() > 0.05, "images of a class differ"
    again = open_image_sampler(artefact.sampler, artefact.files, study).sample(300, np.random.default_rng(0))
    assert (again.pixels == made.pixels).all() and (again.label == made.label).all(), "same seed, same images"


def test_the_network_takes_noise_from_outside():
    """No random node in the graph: a seed decides every pixel, and any number of images can be asked for."""
    study = study_of("mean-embedding")
    artefact = run(study, OTHERS[0] / 255, OTHERS[1])
    graph = onnx.load(io.BytesIO(artefact.files["generator.onnx"])).graph
    assert [i.name for i in graph.input] == ["z", "label"] and not any("Random" in n.op_type for n in graph.node)
    sampler = open_image_sampler(artefact.sampler, artefact.files, study)
    assert len(sampler.of(np.array([1]), np.random.default_rng(0)).pixels) == 1


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_class_that_noise_hides_is_not_made(family):
    study = study_of(family)
    pixels, label = OTHERS
    artefact = run(study, pixels[label == 0] / 255, label[label == 0])
    sampler = open_image_sampler(artefact.sampler, artefact.files, study)
    assert sampler.made == [0] and any("upright" in note for note in artefact.notes)
    assert set(sampler.sample(20, np.random.default_rng(0)).label) == {0}
    with pytest.raises(MedsynxError) as caught:
        sampler.of(np.array([1]), np.random.default_rng(0))
    assert caught.value.code == "condition-invalid"
    with pytest.raises(MedsynxError) as caught:
        run(study, pixels[:2] / 255, label[:2])
    assert caught.value.code == "patients-too-few"


def test_one_image_of_each_class_without_noise():
    for family in FAMILIES:
        artefact = run(study_of(family), np.array([ODD[0], ODD[2]]).repeat(3, 0), np.repeat([0, 1], 3), noise=False)
        assert np.isfinite(
            open_image_sampler(artefact.sampler, artefact.files, study_of(family))
            .sample(4, np.random.default_rng(0))
            .pixels
        ).all()


def test_means_of_another_shape_are_refused_whatever_the_images():
    study = study_of("moments")
    family, priced = get_family("moments"), priced_plan(study).find("covariances")
    for means in (np.zeros((2, 15)), np.full((2, 16), np.nan)):
        with pytest.raises(ValueError, match="shape"):
            family.contribute(study, priced, State({"class means": means}), patients_of([], []), {})


@pytest.mark.parametrize("damage", ["shares", "file", "kind", "shape"])
def test_a_sampler_that_does_not_fit_is_refused(damage):
    study = study_of("moments")
    artefact = run(study, OTHERS[0] / 255, OTHERS[1])
    manifest, files = dict(artefact.sampler), dict(artefact.files)
    if damage == "shares":
        manifest["shares"] = [1.0]
    elif damage == "file":
        files = {"moments.npz": b"no"}
    elif damage == "kind":
        manifest["kind"] = "magic"
    else:
        study = study_of("moments", image={**RAW_IMAGE_STUDY["image"], "shape": [16, 12, 1]})
    with pytest.raises(MedsynxError) as caught:
        open_image_sampler(manifest, files, study)
    assert caught.value.code == "bundle-unreadable"


@pytest.mark.parametrize("name", ["pneumonia", "mednist"])
def test_example_studies_are_valid(name):
    from pathlib import Path

    study = load_study(Path(__file__).parents[2] / "configs" / "studies" / f"{name}.yaml")
    assert study.image
    for family in FAMILIES:
        varied = study.with_family(family)
        plan = priced_plan(varied)
        assert plan.bytes_per_site <= 64 * 1024 * len(study.image.classes)
        for priced in plan.steps[:-1]:
            assert priced.step.part == "train"
            assert priced.noise_std / share_divisor(varied.privacy, 1000) ** 0.5 >= MIN_GRID
    assert priced.step.limit > image_sum.COUNT * UNIT * 50_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"columns": {"age": {"type": "numeric", "bounds": [0, 9], "bins": 3}}},
            "columns: a study describes columns or",
        ),
        ({"family": {"name": "marginals"}}, "family.name: marginals makes tables"),
        ({"privacy": {"epsilon": 1, "delta": 1e-5, "max_records_per_patient": 3}}, "privacy.records: "),
        ({"image": {**RAW_IMAGE_STUDY["image"], "intensity": [5, 5]}}, "image.intensity: "),
        ({"image": {**RAW_IMAGE_STUDY["image"], "classes": ["a", "a"]}}, "image.classes: "),
        ({"image": {"shape": [12, 12, 1], "classes": ["a"]}}, "image.intensity: "),
    ],
)
def test_what_an_image_study_has_to_say(change, words):
    with pytest.raises(MedsynxError) as caught:
        parse_study({**RAW_IMAGE_STUDY, **change})
    assert any(line.startswith(words) for line in caught.value.details), caught.value.details


def test_a_table_family_needs_no_image(raw_study):
    with pytest.raises(MedsynxError) as caught:
        parse_study({**raw_study, "family": {"name": "moments"}})
    assert caught.value.details == ("family.name: moments makes images",)
