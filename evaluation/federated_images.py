"""The private evaluation of images: one secure sum over hold-out patients, through the door and charged like everything else.

The coordinator learns a linear classifier from synthetic images, over the public edge features of :mod:`medsynx.generators.random_features`,
and sends its weights with the request. A site applies it to its hold-out patients and counts what it says: a (class x class) table of answers,
and for each class a (rest or class x bin) histogram of its score. The weights come from noised sums only, so a patient moves a few counts and
nothing else. There is no private reference trained on real images: that would take budget from the generator.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation import scorecard
from evaluation.federated import DRAWS, HOLDOUT, SOURCE, UNIT
from evaluation.federated import noisy_auc as binned_auc
from medsynx.generators.base import Arrays, Contribution, ImagePatients, Patients, State, Total
from medsynx.generators.image_sum import in_batches
from medsynx.generators.random_features import Scattering
from medsynx.image_samplers import Images
from medsynx.plan import PricedStep, Sensitivity, Step
from medsynx.study import Study

JUDGED_IMAGES = 3000  #: synthetic images the classifier learns from
LEARNER = "linear, over edge strengths by place"


class Layout:
    """Which tables the hold-out vector holds: answers (class, class), then for each judged class scores (rest or class, bin).

    Of two classes one score says all, a single class has none.
    """

    def __init__(self, study: Study) -> None:
        assert study.image is not None
        self.classes = len(study.image.classes)
        self.scattering = Scattering(study.image.shape)
        self.scored = list(range(self.classes))[-1 if self.classes == 2 else 0 :] if self.classes > 1 else []
        self.answers = self.classes**2
        self.size = self.answers + len(self.scored) * 2 * scorecard.BINS

    def sensitivity(self) -> Sensitivity:
        """A patient adds at most one count to each table, however many images and labels: the images of a patient share it."""
        return Sensitivity(
            UNIT * math.sqrt(1 + len(self.scored)),
            UNIT,
            "each of a patient's k images adds unit // k to one cell of each table; the classifier depends on no hold-out patient",
        )

    def count(
        self, patients: ImagePatients, weights: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """All tables of these patients in units."""
        out = np.zeros(self.size, np.int64)
        if not len(patients.codes):
            return out
        label, unit = patients.codes[:, 0], UNIT // np.bincount(patients.patient)[patients.patient]

        def said(images: NDArray[np.float32], _: NDArray[np.int64]) -> NDArray[np.float64]:
            # Row by row: a product of matrices rounds by where a row stands, and weights from outside may make much of a last bit.
            return (self.scattering(images).astype(np.float64)[:, None] * weights).sum(axis=2) + bias

        logits = in_batches(
            said, patients.images, label
        )  # in batches too: no patient may move another's answer by a last bit
        np.add.at(out, label * self.classes + logits.argmax(axis=1), unit)
        for k, name in enumerate(self.scored):
            others = np.delete(logits, name, axis=1)
            with np.errstate(all="ignore"):  # the classifier comes from outside and may overflow
                most = others.max(axis=1, keepdims=True)
                score = logits[:, name] - most[:, 0] - np.log(np.exp(others - most).sum(axis=1))
            place = self.answers + (2 * k + (label == name)) * scorecard.BINS
            np.add.at(out, place + scorecard.binned(score), unit)
        return out

    def split(self, vector: NDArray[Any]) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        """A total in units back to tables in counts of patients."""
        counts = np.asarray(vector, float) / UNIT
        scores = counts[self.answers :].reshape(len(self.scored), 2, scorecard.BINS)
        return counts[: self.answers].reshape(self.classes, self.classes), list(scores)


class Evaluation:
    """The step, with a family's verbs."""

    def plan(self, study: Study) -> tuple[Step, ...]:
        """One sum over hold-out patients."""
        layout = Layout(study)
        return (Step(HOLDOUT, "secure-sum", "holdout", layout.size, 1.0, layout.sensitivity()),)

    def next_step(self, study: Study, state: State) -> Step | None:
        """The sum, once."""
        return None if "holdout" in state.arrays else self.plan(study)[0]

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """This site's exact tables. Raises ValueError for a classifier that does not fit the study, whatever the images are."""
        assert isinstance(patients, ImagePatients)
        layout = Layout(study)
        weights, bias = (np.asarray(state.arrays[n], float) for n in ("weights", "bias"))
        fits = weights.shape == (layout.classes, layout.scattering.width) and bias.shape == (layout.classes,)
        if not fits or not (np.isfinite(weights).all() and np.isfinite(bias).all()):
            raise ValueError("the classifier does not fit the study")
        return Contribution({"sum": layout.count(patients, weights, bias)})

    def combine(self, study: Study, priced: PricedStep, state: State, total: Total) -> State:
        """Keep the noised tables."""
        return State({**state.arrays, "holdout": total.arrays["sum"]}, {**state.facts, "noise_std": total.noise_std})


def start(study: Study, synthetic: Images) -> State:
    """State before the evaluation: a classifier learned from synthetic images. A class that is not made is never answered."""
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
    return State({"weights": weights.astype(np.float32), "bias": bias.astype(np.float32)})


def figures(study: Study, state: State) -> dict[str, Any]:
    """AUC (of each class against the rest) and balanced accuracy, from noised tables.

    ``plus_minus`` is one standard deviation of the noise; a figure with more than 0.05 of it, or without a visible class, is not reliable.
    """
    layout, std, rng = Layout(study), float(state.facts["noise_std"]) / UNIT, np.random.default_rng(0)
    answers, scores = layout.split(state.arrays["holdout"])
    out = {
        "tstr_auc": _mean([binned_auc(s, std, rng) for s in scores]),
        "tstr_balanced_accuracy": _balanced(answers, std, rng),
    }
    return {name: {**figure, "learner": LEARNER, "source": SOURCE} for name, figure in out.items()}


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
