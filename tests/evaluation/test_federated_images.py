"""The private evaluation of images: what a patient can move, what figures come of it, what a site refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import federated_images
from evaluation.federated_images import Evaluation, Layout, figures, start
from evaluation.programme import priced_plan
from medsynx.generators.base import ImagePatients, State, Total
from medsynx.image_samplers import Images
from medsynx.study import parse_study
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


def judged(study, state, pixels, label, noise=True, seed=0):
    priced = priced_plan(study).find("evaluate: hold-out")
    vector = Evaluation().contribute(study, priced, state, patients(pixels, label), {}).arrays["sum"]
    std = priced.noise_std if noise else 1e-9
    drawn = np.round(np.random.default_rng(seed).normal(0, std, len(vector))).astype(np.int64)
    return figures(study, Evaluation().combine(study, priced, state, Total({"sum": vector + drawn}, std, 1)))


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("size", [50, 1e308])
@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=9), st.integers(0, 3))
def test_a_patient_moves_the_tables_by_no_more_than_the_sensitivity(size, images, seed):
    """Any images, any number, any labels, any classifier, one whose answers overflow among them."""
    study, rng = study_of("abc"), np.random.default_rng(seed)
    layout, step = Layout(study), Evaluation().plan(study)[0]
    state = State({"weights": size * rng.uniform(-1, 1, (3, layout.scattering.width)), "bias": np.zeros(3)})
    drawn = np.random.default_rng(9).random((6, 12, 12)).round()
    others = np.random.default_rng(8).random((4, 12, 12)), [0, 1, 2, 2]

    def total(extra):
        pixels = np.concatenate([np.array([drawn[k] for k, _ in extra]).reshape(-1, 12, 12), others[0]])
        person = np.concatenate([np.zeros(len(extra), int), np.arange(4) + bool(extra)])
        rows = patients(pixels, [c for _, c in extra] + others[1], person)
        return Evaluation().contribute(study, priced_plan(study).find(step.name), state, rows, {}).arrays["sum"]

    moved = total(images) - total([])
    assert (moved**2).sum() <= step.sensitivity.l2**2 and np.abs(moved).max() <= step.sensitivity.linf
    assert len(moved) == step.size and step.part == "holdout"


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
        state = State({"weights": 1e12 * weights, "bias": np.zeros(9)})
        rows = patients(np.repeat(pixels[None], 300, axis=0), np.zeros(300, int))
        priced = priced_plan(study).find("evaluate: hold-out")
        answers, _ = layout.split(Evaluation().contribute(study, priced, state, rows, {}).arrays["sum"])
        assert sorted(answers.ravel()) == [0] * 80 + [300]


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


@pytest.mark.parametrize("name", ["weights", "bias"])
def test_a_site_refuses_a_classifier_that_does_not_fit(name):
    study = study_of()
    state, priced = start(study, made(40, 1)), priced_plan(study).find("evaluate: hold-out")
    for bad in (np.full_like(state.arrays[name], np.nan), state.arrays[name][:1]):
        with pytest.raises(ValueError, match="fit"):
            Evaluation().contribute(study, priced, State({**state.arrays, name: bad}), patients([], []), {})


def test_an_empty_part_counts_nothing():
    study = study_of()
    state, priced = start(study, made(40, 1)), priced_plan(study).find("evaluate: hold-out")
    found = Evaluation().contribute(study, priced, state, patients([], []), {}).arrays["sum"]
    assert not found.any() and found.dtype == np.int64


def test_training_leaves_the_hold_out_alone():
    plan = priced_plan(study_of())
    assert {s.step.part for s in plan.steps[:-1]} == {"train"} and plan.steps[-1].step.part == "holdout"
    assert federated_images.Layout(study_of("abc")).size == 9 + 3 * 32
