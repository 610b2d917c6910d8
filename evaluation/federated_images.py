"""The private evaluation of images: two secure sums, through the door and charged like everything else.

The coordinator learns a linear classifier from synthetic images, over the public edge features of :mod:`medsynx.generators.random_features`, fits
a view to them (:mod:`evaluation.image_view`), and sends both with the request. Of its hold-out patients a site counts what the classifier says
(a table of answers by class, and for each class a histogram of its score), how near the nearest synthetic image is, and the moments of
where they lie. Of its training patients it counts how near the nearest is, and no more: what differs is what a generator remembers
(:mod:`evaluation.memorisation`). Classifier and view come from noised sums only, so a patient moves a few counts and moments and nothing else. There
is no private reference trained on real images: that would take budget from the generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import image_view, memorisation, scorecard
from evaluation.federated import DRAWS, HOLDOUT, REFERENCE, SOURCE
from evaluation.federated import noisy_auc as binned_auc
from evaluation.image_view import View
from medsynx.generators.base import Arrays, Contribution, ImagePatients, Patients, State, Total
from medsynx.generators.image_sum import ImageSum, in_batches
from medsynx.generators.random_features import Scattering
from medsynx.image_samplers import Images
from medsynx.plan import PricedStep, Sensitivity, Step
from medsynx.study import Study

JUDGED_IMAGES = 3000  #: synthetic images the classifier learns from
#: cargo units a count (see medsynx.secure_sum.noise on the grid), and a unit of moments, whose entries are small
UNIT = 2**13
#: what a patient adds to the histogram of nearness, and a unit of its moments. Both take part in the norm, and so take precision from the AUC:
#: the weights keep its noise within a fifth of what it would be alone.
NEAR_UNIT, MOMENT_UNIT = UNIT // 2, 7 * UNIT // 10
#: of a training patient's budget: a histogram of many patients is readable at much noise, and the generator keeps the rest
TRAIN_SHARE = 0.03
LEARNER = "linear, over edge strengths by place"


class Layout:
    """Which tables the hold-out vector holds: answers (class, class), for each judged class scores (rest or class, bin), how near the nearest
    synthetic image is (bin), and moments.

    Of two classes one score says all, a single class has none.
    """

    def __init__(self, study: Study) -> None:
        assert study.image is not None
        self.classes = len(study.image.classes)
        self.scattering = Scattering(study.image.shape)
        self.scored = list(range(self.classes))[-1 if self.classes == 2 else 0 :] if self.classes > 1 else []
        self.answers = self.classes**2
        self.near = self.answers + len(self.scored) * 2 * scorecard.BINS  #: where the histogram begins
        self.moments = ImageSum(image_view.WIDTH, 1, counted=False, unit=MOMENT_UNIT)
        self.size = self.near + memorisation.BINS + self.moments.size

    def sensitivity(self) -> Sensitivity:
        """A patient adds at most one count to each table and moments of norm one, however many images and labels: its images share it."""
        return Sensitivity(
            math.ceil(math.hypot(UNIT * math.sqrt(1 + len(self.scored)), NEAR_UNIT, MOMENT_UNIT)),
            UNIT,
            "each of a patient's k images adds a table's unit // k to one cell of it; their moments, of norm 1 at most, are averaged; "
            "classifier and view depend on no hold-out patient",
        )

    def count(
        self, patients: ImagePatients, weights: NDArray[np.float64], bias: NDArray[np.float64], view: View
    ) -> NDArray[np.int64]:
        """All tables of these patients in units."""
        out = np.zeros(self.size, np.int64)
        if not len(patients.codes):
            return out
        label, unit = patients.codes[:, 0], shared(UNIT, patients)

        def said(images: NDArray[np.float32], _: NDArray[np.int64]) -> NDArray[np.float64]:
            # Row by row: a product of matrices rounds by where a row stands, and weights from outside may make much of a last bit.
            with np.errstate(all="ignore"):
                return (self.scattering(images).astype(np.float64)[:, None] * weights).sum(axis=2) + bias

        # in batches too: no patient may move another's answer by a last bit
        logits, seen = in_batches(said, patients.images, label), look(view, patients.images)
        np.add.at(out, self.near + memorisation.binned(seen[:, 0]), shared(NEAR_UNIT, patients))
        out[self.near + memorisation.BINS :] = self.moments.add_rows(
            seen[:, 1:], np.zeros_like(label), patients.patient
        )
        np.add.at(out, label * self.classes + logits.argmax(axis=1), unit)
        for k, name in enumerate(self.scored):
            others = np.delete(logits, name, axis=1)
            with np.errstate(all="ignore"):  # the classifier comes from outside and may overflow
                most = others.max(axis=1, keepdims=True)
                score = logits[:, name] - most[:, 0] - np.log(np.exp(others - most).sum(axis=1))
            place = self.answers + (2 * k + (label == name)) * scorecard.BINS
            np.add.at(out, place + scorecard.binned(score), unit)
        return out

    def split(self, vector: NDArray[Any]) -> Tables:
        """A total in units back to tables in counts of patients."""
        answers, scores, near, moments = np.split(
            np.asarray(vector, float), [self.answers, self.near, self.near + memorisation.BINS]
        )
        shaped = scores.reshape(len(self.scored), 2, scorecard.BINS) / UNIT
        answers = answers.reshape(self.classes, self.classes) / UNIT
        return Tables(answers, list(shaped), near / NEAR_UNIT, moments / MOMENT_UNIT)


@dataclass(frozen=True)
class Tables:
    """A hold-out total in patients: answers (class, class), scores (rest or class, bin) a judged class, nearness (bin), sums of moments."""

    answers: NDArray[np.float64]
    scores: list[NDArray[np.float64]]
    near: NDArray[np.float64]
    moments: NDArray[np.float64]

    @property
    def patients(self) -> float:
        """How many there are, by answers and scores; the more cells, the more noise, the less a table says."""
        counts = [self.answers, *self.scores]
        return float(np.average([c.sum() for c in counts], weights=[1 / c.size for c in counts]))


def shared(unit: int, patients: ImagePatients) -> NDArray[np.int64]:
    """What each image adds to a table: a patient's k images ``unit // k`` each."""
    share: NDArray[np.int64] = unit // np.bincount(patients.patient)[patients.patient]
    return share


def look(view: View, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """Distance to the nearest synthetic image, and moments: (images, channels, height, width) -> (images, 1 + WIDTH).

    Each image is looked at alone and where it lies in memory tells nothing of the others: sums of a batch may round by an image's place in it.
    """
    out = np.empty((len(images), 1 + image_view.WIDTH))
    for k, image in enumerate(images):
        at = view.coordinates(image[None].copy())
        out[k] = np.hstack([view.distance(at), view.moments(at)[0]])
    return out


def nearness(view: View, patients: ImagePatients) -> NDArray[np.int64]:
    """The histogram of these patients' distances, in units."""
    out = np.zeros(memorisation.BINS, np.int64)
    np.add.at(out, memorisation.binned(look(view, patients.images)[:, 0]), shared(UNIT, patients))
    return out


KEPT = {REFERENCE: "train", HOLDOUT: "holdout"}  #: step -> its total's name in the state


class Evaluation:
    """The two steps, with a family's verbs."""

    def plan(self, study: Study) -> tuple[Step, ...]:
        """How near training patients are, then one sum over hold-out patients, who pay for nothing else."""
        layout = Layout(study)
        bound = Sensitivity(
            UNIT,
            UNIT,
            "each of a patient's k images adds unit // k to one cell; the noise of the family covers what the view knows of it",
        )
        train = Step(REFERENCE, "secure-sum", "train", memorisation.BINS, TRAIN_SHARE, bound)
        return (
            train,
            Step(HOLDOUT, "secure-sum", "holdout", layout.size, 1.0, layout.sensitivity()),
        )

    def next_step(self, study: Study, state: State) -> Step | None:
        """Each sum, once."""
        return next((s for s in self.plan(study) if KEPT[s.name] not in state.arrays), None)

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """This site's exact tables. Raises ValueError for a classifier or view that does not fit the study, whatever the images are."""
        assert isinstance(patients, ImagePatients) and study.image
        layout, view = Layout(study), View(state.arrays, study.image.shape[2])
        if priced.step.name == REFERENCE:
            return Contribution({"sum": nearness(view, patients)})
        weights, bias = (np.asarray(state.arrays[n], float) for n in ("weights", "bias"))
        fits = weights.shape == (layout.classes, layout.scattering.width) and bias.shape == (layout.classes,)
        if not fits or not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            raise ValueError("the classifier does not fit the study")
        return Contribution({"sum": layout.count(patients, weights, bias, view)})

    def combine(self, study: Study, priced: PricedStep, state: State, total: Total) -> State:
        """Keep the noised tables."""
        name = KEPT[priced.step.name]
        return State({**state.arrays, name: total.arrays["sum"]}, {**state.facts, f"{name}_std": total.noise_std})


def start(study: Study, synthetic: Images) -> State:
    """State before the evaluation: a classifier learned from synthetic images, and a view. A class that is not made is never answered."""
    from sklearn.linear_model import LogisticRegression

    layout = Layout(study)
    rows = in_batches(lambda images, _: layout.scattering(images), synthetic.pixels, synthetic.label).astype(float)
    mean, std = rows.mean(axis=0), rows.std(axis=0) + 1e-3
    weights, bias = np.zeros((layout.classes, layout.scattering.width)), np.full(layout.classes, -1e3)
    made = np.unique(synthetic.label)
    if len(made) == 1:
        bias[made] = 0.0
    else:
        learned = LogisticRegression(C=0.05, max_iter=200, class_weight="balanced").fit(
            (rows - mean) / std, synthetic.label
        )
        sides = np.array([[-0.5], [0.5]]) if len(made) == 2 else np.eye(len(made))
        weights[made] = sides @ learned.coef_ / std
        bias[made] = sides @ learned.intercept_ - weights[made] @ mean
    classifier = {"weights": weights.astype(np.float32), "bias": bias.astype(np.float32)}
    return State(classifier | image_view.of(synthetic))


def figures(study: Study, state: State) -> dict[str, Any]:
    """AUC (of each class against the rest), balanced accuracy, Frechet and kernel distance and memorisation, from noised tables.

    Of the first two ``plus_minus`` is one standard deviation of the noise; with more than 0.05 of it, or without a visible class, they are not
    reliable. For the others see :func:`evaluation.image_view.frechet` and :func:`evaluation.memorisation.figure`.
    """
    assert study.image
    train_std, holdout_std = (float(state.facts[f"{name}_std"]) for name in ("train", "holdout"))
    std = holdout_std / UNIT
    rng, tables = np.random.default_rng(0), Layout(study).split(state.arrays["holdout"])
    view = View(state.arrays, study.image.shape[2])
    moments = tables.moments, tables.patients, holdout_std / MOMENT_UNIT
    learned = {
        "tstr_auc": _mean([binned_auc(s, std, rng) for s in tables.scores]),
        "tstr_balanced_accuracy": _balanced(tables.answers, std, rng),
    }
    out = {name: {**figure, "learner": LEARNER} for name, figure in learned.items()} | {
        "frechet": image_view.frechet(view, *moments),
        "kernel_distance": image_view.kernel(view, *moments),
        "memorisation": memorisation.figure(
            np.asarray(state.arrays["train"], float) / UNIT, tables.near, (train_std / UNIT, holdout_std / NEAR_UNIT)
        ),
    }
    return {name: {**figure, "source": SOURCE} for name, figure in out.items()}


def _mean(found: list[dict[str, Any]]) -> dict[str, Any]:
    values = [f["value"] for f in found]
    if not values:
        return {"value": None, "why": "the study has one class"}
    if None in values:
        return {"value": None, "why": "noise leaves no count in one class", "reliable": False}
    spread = math.sqrt(sum(f["plus_minus"] ** 2 for f in found)) / len(found)
    return {"value": float(np.mean(values)), "plus_minus": spread, "reliable": spread <= 0.05}


def _balanced(answers: NDArray[np.float64], std: float, rng: np.random.Generator) -> dict[str, Any]:
    def value(table: NDArray[np.float64]) -> float | None:
        patients = table.sum(axis=1)
        seen = patients > 3 * std * math.sqrt(len(table))
        return float(np.clip((np.diag(table) / np.where(seen, patients, 1)).mean(), 0, 1)) if seen.all() else None

    found = value(answers)
    if found is None:
        return {"value": None, "why": "noise hides a class of the hold-out", "reliable": False}
    again = [value(answers + rng.normal(0, std, answers.shape)) for _ in range(DRAWS)]
    spread = float(np.std([a for a in again if a is not None] or [1.0]))
    return {"value": found, "plus_minus": spread, "reliable": spread <= 0.05}
