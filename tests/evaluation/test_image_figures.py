"""Direct figures of images: they tell good images from bad ones, and say when there is nothing to tell."""

import numpy as np
import pytest

from evaluation import gate, image_grid, image_space, image_view, images, memorisation, results
from medsynx.image_samplers import Images
from medsynx.study import parse_study
from tests.conftest import RAW_IMAGE_STUDY, stripes

CLASSES = ("flat", "upright")


def made(count, seed):
    pixels, label = stripes(count, seed)
    return Images((pixels / 255).astype(np.float32)[:, None], label)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(images, "STEPS", 40)


def test_good_images_beat_the_mean_only_control_and_bad_labels_show():
    train, holdout = made(500, 1), made(300, 2)
    good = images.figures(CLASSES, train, holdout, made(500, 3))
    assert good["tstr_auc"]["value"] > 0.95 and good["trtr_balanced_accuracy"]["value"] > 0.9
    frechet = good["frechet"]
    assert frechet["value"] < 2 * frechet["floor"] + 0.05 < frechet["mean_only"] / 2
    kernel = good["kernel_distance"]
    assert kernel["value"] < kernel["floor"] + 0.05 < kernel["mean_only"] / 2
    assert good["memorisation"]["value"] < 0.15 and good["memorisation"]["plus_minus"] < 0.1
    assert all("not private" in figure["source"] for figure in good.values())
    wrong = made(500, 3)
    bad = images.figures(CLASSES, train, holdout, Images(wrong.pixels * 0.2, 1 - wrong.label))
    assert bad["tstr_auc"]["value"] < 0.5 and bad["frechet"]["value"] > 5 * frechet["value"]
    assert bad["kernel_distance"]["value"] > 5 * abs(kernel["value"]) + 0.1


def test_copies_of_the_training_images_are_found():
    train, holdout = made(300, 1), made(200, 2)
    view = image_view.View(image_view.of(train), 1)
    copies = memorisation.figure(*(memorisation.count(view.nearest(i.pixels)) for i in (train, holdout)))
    assert copies["value"] > 0.9 and copies["histogram"]["train"][0] == 1


def test_figures_repeat(monkeypatch):
    """Classifier and space are seeded: the same images give the same figures."""
    monkeypatch.setattr(images, "STEPS", 5)
    train, holdout = made(200, 1), made(100, 2)
    one, two = (images.figures(CLASSES, train, holdout, made(200, 3)) for _ in range(2))
    assert one == two


def test_a_frechet_distance_to_itself_is_none_and_grows_with_a_shift():
    features = np.random.default_rng(0).normal(size=(400, 20))
    assert images.frechet(features, features) == pytest.approx(0, abs=1e-4)
    spread = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)[0] / 20
    shifted = images.frechet(features, features + np.eye(20)[0] * 3 * spread)
    assert shifted == pytest.approx(9, rel=0.02), "a shift by three standard deviations"
    assert images.frechet(features[:10], features) is None


def test_a_kernel_distance_has_no_bias_and_grows_with_a_shift():
    rng = np.random.default_rng(0)
    same = [image_space.kernel_distance(*rng.normal(size=(2, 60, 20))) for _ in range(200)]
    assert abs(np.mean(same)) < 5 * np.std(same) / np.sqrt(200) and min(same) < 0
    real = rng.normal(size=(60, 20))
    near, far = (image_space.kernel_distance(real, rng.normal(size=(60, 20)) + shift) for shift in (0.2, 0.5))
    assert max(same) < near < far
    assert image_space.kernel_distance(real[:10], real) is None


def test_gaussians_in_closed_form():
    """Of covariances that commute: shifts squared, and squared differences of standard deviations."""
    a = np.zeros(2), np.diag([4.0, 1.0])
    assert image_space.gaussian_distance(a, (np.array([3.0, 0]), np.diag([1.0, 9.0]))) == pytest.approx(9 + 1 + 4)
    assert image_space.gaussian_distance(a, (a[0], np.diag([4.0, -1.0]))) == pytest.approx(1), "below 0 counts as 0"


def test_the_random_space_has_as_many_features_as_a_view_expects():
    assert image_space.RandomSpace(3)(np.zeros((2, 3, 16, 16), np.float32)).shape == (2, image_view.FEATURES)


def test_no_figure_without_all_classes():
    one = made(100, 1)
    flat = Images(one.pixels[one.label == 0], one.label[one.label == 0])
    found = images.figures(CLASSES, one, made(60, 2), flat)
    assert found["tstr_auc"]["value"] is None and "classes" in found["tstr_auc"]["why"]
    found = images.figures(CLASSES, one, flat, one)
    assert found["trtr_auc"]["value"] is None and "hold-out" in found["trtr_auc"]["why"]


def test_the_gate_of_an_image_study_stays_shut():
    """Nothing private was measured, whatever thresholds the study sets or leaves out."""
    for thresholds in ({}, {"min_tstr_auc": 0.1}):
        study = parse_study({**RAW_IMAGE_STUDY, "gate": thresholds})
        built = results.build(
            study, figures=None, direct=None, judged=None, synthetic=made(20, 1), rounds=[], sites=[], privacy={}
        )
        assert built["gate"] == gate.CLOSED and built["gate"]["passed"] is False
        assert "cannot be released" in built["notes"][0]


def test_strips_hold_the_pixels():
    import io

    from PIL import Image

    some = made(20, 5)
    strip = np.asarray(Image.open(io.BytesIO(image_grid.strip(some, 1))))
    first = np.round(255 * some.pixels[some.label == 1][0, 0])
    assert strip.shape == (12, 12 * int((some.label == 1).sum())) and np.abs(strip[:, :12] - first).max() <= 1
    assert [row["class"] for row in image_grid.grid(some, CLASSES)] == list(CLASSES)
