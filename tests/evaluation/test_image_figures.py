"""Direct figures of images: they tell good images from bad ones, and say when there is nothing to tell."""

import numpy as np
import pytest

from evaluation import gate, image_grid, images, results
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
    assert all("not private" in figure["source"] for figure in good.values())
    wrong = made(500, 3)
    bad = images.figures(CLASSES, train, holdout, Images(wrong.pixels * 0.2, 1 - wrong.label))
    assert bad["tstr_auc"]["value"] < 0.5 and bad["frechet"]["value"] > 5 * frechet["value"]


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
