"""The private evaluation of images: what a patient can move, what figures come of it, what a site refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import federated_images, gate, image_view
from evaluation.federated_images import Evaluation, Layout, figures, start
from evaluation.programme import priced_plan
from medsynx.generators.base import ImagePatients, State, Total
from medsynx.image_samplers import Images
from medsynx.privacy import epsilon_of_plan
from medsynx.study import GateSpec, parse_study
from tests.conftest import RAW_IMAGE_STUDY, stripes


def study_of(classes=("flat", "upright")):
    image = {**RAW_IMAGE_STUDY["image"], "classes": list(classes)}
    return parse_study({**RAW_IMAGE_STUDY, "image": image, "evaluation": {}, "gate": {"min_tstr_auc": 0.8}})


def patients(pixels, label, patient=None):
    images = np.asarray(pixels, np.float32).reshape(-1, 1, 12, 12)
    number = np.arange(len(images)) if patient is None else np.asarray(patient, np.int64)
    return ImagePatients(np.asarray(label, np.int64).reshape(-1, 1), number, images)


def made(count, seed):
    pixels, label = stripes(count, seed)
    return Images((pixels / 255).astype(np.float32)[:, None], label)


STEPS = ("evaluate: reference", "evaluate: hold-out")


def judged(study, state, pixels, label, noise=True, seed=0, train=None):
    """Figures of these hold-out patients; ``train`` is pixels and labels of the training patients, the same when omitted."""
    rng, given_ = (
        np.random.default_rng(seed),
        dict(zip(STEPS, (train or (pixels, label), (pixels, label)), strict=True)),
    )
    while step := Evaluation().next_step(study, state):
        priced = priced_plan(study).find(step.name)
        vector = Evaluation().contribute(study, priced, state, patients(*given_[step.name]), {}).arrays["sum"]
        std = priced.noise_std if noise else 1e-9
        drawn = np.round(rng.normal(0, std, len(vector))).astype(np.int64)
        state = Evaluation().combine(study, priced, state, Total({"sum": vector + drawn}, std, 1))
    return figures(study, state)


def any_view(rng, size, radius):
    """A view of no images at all, as a coordinator might send it."""
    arrays = {"centre": (896,), "directions": (896, 64), "drawn": (9, 64), "control": (image_view.WIDTH,)}
    return {n: size * rng.uniform(-1, 1, s) for n, s in arrays.items()} | {"scale": np.array([radius, 1.0])}


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize(("size", "radius"), [(50, 1e-3), (0.05, 1.0), (1e308, 1e-300)])
@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=9), st.integers(0, 3))
def test_a_patient_moves_the_tables_by_no_more_than_the_sensitivity(size, radius, images, seed):
    """Any images, any number, any labels, any classifier and view, those whose answers overflow among them."""
    study, rng = study_of("abc"), np.random.default_rng(seed)
    layout, plan = Layout(study), priced_plan(study)
    classifier = {"weights": size * rng.uniform(-1, 1, (3, layout.scattering.width)), "bias": np.zeros(3)}
    state = State(classifier | any_view(rng, size, radius))
    drawn = np.random.default_rng(9).random((6, 12, 12)).round()
    others = np.random.default_rng(8).random((4, 12, 12)), [0, 1, 2, 2]

    def total(step, extra):
        pixels = np.concatenate([np.array([drawn[k] for k, _ in extra]).reshape(-1, 12, 12), others[0]])
        person = np.concatenate([np.zeros(len(extra), int), np.arange(4) + bool(extra)])
        rows = patients(pixels, [c for _, c in extra] + others[1], person)
        return Evaluation().contribute(study, plan.find(step.name), state, rows, {}).arrays["sum"]

    for step, part in zip(Evaluation().plan(study), ("train", "holdout"), strict=True):
        moved = total(step, images) - total(step, [])
        assert (moved**2).sum() <= step.sensitivity.l2**2 and np.abs(moved).max() <= step.sensitivity.linf
        assert len(moved) == step.size and step.part == part
        if len(images) == 1 and size == 50:
            assert (moved**2).sum() > 0.99 * step.sensitivity.l2**2, "no more is charged than can be moved"


def test_an_image_looks_the_same_whoever_else_is_there():
    """To the last bit, and however many threads there are: neighbours differ in one patient's counts and nothing else."""
    import torch

    some, study = made(60, 4), study_of()
    view = image_view.View(start(study, made(100, 1)).arrays, 1)

    def seen(at):
        return federated_images.look(view, some.pixels[at])

    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            whole = seen(np.arange(60))
            for at in ([7], [50, 7], np.arange(59, 20, -1)):
                assert (seen(np.asarray(at)) == whole[at]).all()
    finally:
        torch.set_num_threads(before)


def test_a_copying_generator_is_found_and_an_honest_one_is_not():
    """Half the synthetic images are training patients' own, of two thirds of them; then none are."""
    study = study_of()
    (pixels, label), holdout = stripes(1500, 2), stripes(500, 3)
    honest = made(2000, 1)
    copies = np.concatenate([(pixels[:1000] / 255).astype(np.float32)[:, None], honest.pixels[:1000]])
    planted = Images(copies, np.concatenate([label[:1000], honest.label[:1000]]))
    scaled = holdout[0] / 255, holdout[1]
    good, bad = (
        judged(study, start(study, images), *scaled, train=(pixels / 255, label))["memorisation"]
        for images in (honest, planted)
    )
    assert good["reliable"] and good["value"] < 2 * good["resolution"] < 0.3
    assert bad["reliable"] and bad["value"] > 0.5 and bad["value"] > 3 * bad["resolution"]
    assert bad["histogram"]["train"][0] == pytest.approx(2 / 3, abs=0.1) and bad["histogram"]["holdout"][0] < 0.1
    spec = GateSpec(max_memorisation=0.3)
    assert gate.check(spec, {"memorisation": good})["passed"] and not gate.check(spec, {"memorisation": bad})["passed"]
    finer = GateSpec(max_memorisation=good["resolution"] / 2)
    assert not gate.check(finer, {"memorisation": {**good, "value": 0.0}})["passed"], "finer than what noise can tell"
    for unknown in ({**good, "reliable": False}, {"value": None}):
        assert not gate.check(spec, {"memorisation": unknown})["passed"]
    assert not gate.check(spec, {})["passed"] and not gate.check(spec, None)["passed"]


@pytest.mark.parametrize("name", ["frechet", "kernel_distance"])
def test_a_distance_tells_a_good_generator_from_a_bad_one(name):
    study, (pixels, label) = study_of(), stripes(1000, 2)
    good = judged(study, start(study, made(1000, 1)), pixels / 255, label)[name]
    assert good["reliable"] and good["value"] < 2 * good["resolution"] < good["mean_only"]
    dark = made(1000, 1)
    bad = judged(study, start(study, Images(dark.pixels * 0.5, dark.label)), pixels / 255, label)[name]
    assert bad["value"] > 10 * good["resolution"]


def test_the_frechet_distance_without_noise_is_that_of_the_moments():
    """One image more than once in a patient changes nothing; means and covariances come back from the integers."""
    study, some = study_of(), made(400, 2)
    state = start(study, made(500, 1))
    view, layout = image_view.View(state.arrays, 1), Layout(study)
    twice = ImagePatients(
        np.tile(some.label, 2)[:, None], np.tile(np.arange(400), 2), np.tile(some.pixels, (2, 1, 1, 1))
    )
    arrays = [np.asarray(state.arrays[n], float) for n in ("weights", "bias")]
    tables = layout.split(layout.count(twice, *arrays, view))
    inside = view.coordinates(some.pixels)[:, : image_view.MOMENTS] / view.radius
    inside /= np.maximum(1, np.linalg.norm(inside, axis=1, keepdims=True))
    mean, cov = view.gaussian(tables.moments / 400)
    assert tables.patients == pytest.approx(400) and tables.near.sum() == pytest.approx(400)
    assert np.allclose(mean, view.radius * inside.mean(axis=0), atol=2e-3)
    assert np.allclose(cov, view.radius**2 * np.cov(inside.T, bias=True), atol=5e-3)


def test_figures_tell_a_good_generator_from_a_bad_one():
    study = study_of()
    pixels, label = stripes(600, 2)
    good = judged(study, start(study, made(400, 1)), pixels / 255, label)
    assert good["tstr_auc"]["value"] > 0.95 and good["tstr_auc"]["reliable"]
    assert good["tstr_balanced_accuracy"]["value"] > 0.9 and good["tstr_balanced_accuracy"]["reliable"]
    wrong = made(400, 1)
    swapped = judged(study, start(study, Images(wrong.pixels, 1 - wrong.label)), pixels / 255, label)
    assert swapped["tstr_auc"]["value"] < 0.1 and swapped["tstr_balanced_accuracy"]["value"] < 0.1


def test_the_tables_without_noise_are_the_classifiers_own_answers():
    study, (pixels, label) = study_of(), stripes(300, 2)
    state = start(study, made(60, 1))
    layout = Layout(study)
    logits = layout.scattering((pixels / 255).astype(np.float32)[:, None]) @ state.arrays["weights"].T
    right = ((logits + state.arrays["bias"]).argmax(axis=1) == label).astype(float)
    expected = np.mean([right[label == k].mean() for k in (0, 1)])
    found = judged(study, state, pixels / 255, label, noise=False)
    assert found["tstr_balanced_accuracy"]["value"] == pytest.approx(expected, abs=1e-3)


def test_alike_images_get_one_answer_from_a_classifier_that_hangs_on_the_last_bit():
    """Its score of this image is nothing but rounding, made large: were it to depend on where an image stands, one patient would move the others."""
    study, pixels = study_of("abcdefghi"), np.random.default_rng(4).random((12, 12))
    layout = Layout(study)
    seen = layout.scattering(pixels.astype(np.float32).reshape(1, 1, 12, 12))[0].astype(float)
    rng = np.random.default_rng(5)
    for _ in range(20):
        weights = rng.normal(size=(9, layout.scattering.width))
        weights -= np.outer(weights @ seen, seen) / (seen @ seen)
        state = State({"weights": 1e12 * weights, "bias": np.zeros(9)} | any_view(rng, 1e12, 1e25))
        rows = patients(np.repeat(pixels[None], 300, axis=0), np.zeros(300, int))
        priced = priced_plan(study).find("evaluate: hold-out")
        vector = Evaluation().contribute(study, priced, state, rows, {}).arrays["sum"]
        tables = layout.split(vector)
        assert sorted(tables.answers.ravel()) == [0] * 80 + [300] and sorted(tables.near) == [0] * 7 + [300]
        assert (vector % 300 == 0).all() and tables.moments.any(), "each adds the same moments"


def test_few_patients_give_no_reliable_figure():
    study, (pixels, label) = study_of(), stripes(12, 2)
    found = judged(study, start(study, made(100, 1)), pixels / 255, label)
    assert not any(figure.get("reliable", True) for figure in found.values())


def test_a_class_that_is_not_made_is_never_answered():
    study = study_of("abc")
    state = start(study, made(100, 1))
    logits = Layout(study).scattering(made(50, 2).pixels) @ state.arrays["weights"].T + state.arrays["bias"]
    assert set(logits.argmax(axis=1)) == {0, 1}
    one = made(50, 1)
    flat = start(study, Images(one.pixels[one.label == 0], one.label[one.label == 0]))
    assert np.isfinite(flat.arrays["weights"]).all() and flat.arrays["bias"].argmax() == 0


def test_one_class_has_no_auc():
    study = study_of(["all"])
    one = Images(made(50, 1).pixels, np.zeros(50, int))
    found = judged(study, start(study, one), one.pixels, one.label)
    assert found["tstr_auc"]["value"] is None and "one class" in found["tstr_auc"]["why"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["weights", "bias", *image_view.ARRAYS])
def test_a_site_refuses_a_classifier_or_view_that_does_not_fit(name, step):
    study = study_of()
    state, priced = start(study, made(40, 1)), priced_plan(study).find(step)
    if step == STEPS[0] and name in ("weights", "bias"):
        pytest.skip("not looked at")
    wrong = [np.full_like(state.arrays[name], np.nan), state.arrays[name][:0]]
    wrong += [-state.arrays[name]] if name == "scale" else []
    wrong += [np.zeros((3001, 64), np.float32)] if name == "drawn" else []
    for bad in wrong:
        with pytest.raises(ValueError, match="fit"):
            Evaluation().contribute(study, priced, State({**state.arrays, name: bad}), patients([], []), {})
    with pytest.raises((KeyError, ValueError)):
        rest = {n: a for n, a in state.arrays.items() if n != name}
        Evaluation().contribute(study, priced, State(rest), patients([], []), {})


@pytest.mark.parametrize("step", STEPS)
def test_an_empty_part_counts_nothing(step):
    study = study_of()
    state, priced = start(study, made(40, 1)), priced_plan(study).find(step)
    found = Evaluation().contribute(study, priced, state, patients([], []), {}).arrays["sum"]
    assert not found.any() and found.dtype == np.int64


def test_a_view_of_few_or_equal_images_is_one():
    study, one = study_of(), made(3, 1)
    for images in (one, Images(np.repeat(one.pixels[:1], 40, axis=0), np.repeat(one.label[:1], 40))):
        state = start(study, images)
        assert all(np.isfinite(a).all() for a in state.arrays.values())
        found = judged(study, state, *stripes(60, 2))
        assert not found["memorisation"]["reliable"] and np.isfinite(found["frechet"]["value"])


def test_training_leaves_the_hold_out_alone():
    """And what is counted of training patients is taken from their budget, not added to it."""
    study = study_of("abc")
    plan = priced_plan(study)
    *train, last = plan.steps
    assert [s.step.part for s in train] == ["train"] * len(train) and last.step.part == "holdout"
    assert "evaluate: reference" in [s.step.name for s in train]
    assert sum(s.step.share for s in train) == pytest.approx(1) and epsilon_of_plan(plan, 1e-5) <= study.privacy.epsilon
    assert federated_images.Layout(study).size == 9 + 3 * 32 + 8 + 44
