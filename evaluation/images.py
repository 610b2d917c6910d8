"""Figures of synthetic images computed straight on real ones, for `medsynx simulate --holdout`. They are not private and say so.

The classifier is a small convolutional network, the space of the distances a fixed random one (:mod:`evaluation.image_space`): neither needs weights
from elsewhere. Read the distances beside their floor and the mean-only control.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from evaluation import image_view, memorisation
from evaluation.direct import SOURCE
from evaluation.image_space import RandomSpace, frechet, kernel_distance, mean_only
from medsynx.image_samplers import Images
from medsynx.progress import track

SYNTHETIC = 3000  #: synthetic images that are judged
STEPS, BATCH = 250, 128  #: of training the classifier
COMPARED = 300  #: images of each side of a distance
LEARNER = "small convolutional network"


def figures(classes: tuple[str, ...], train: Images, holdout: Images, synthetic: Images) -> dict[str, Any]:
    """TSTR and TRTR on the hold-out, distances of synthetic to hold-out images with the training images' as floor, and memorisation."""
    out: dict[str, Any] = {}
    for name, learned in (("tstr", synthetic), ("trtr", train)):
        found, why = judge(learned, holdout, len(classes), f"judging: {name.upper()}")
        for key, value in found.items():
            out[f"{name}_{key}"] = {"value": value, "learner": LEARNER} | ({"why": why} if why else {})
    space = RandomSpace(holdout.pixels.shape[1])
    real, *others = (space(_some(images)) for images in (holdout, synthetic, train, mean_only(train)))
    for name, distance in (("frechet", frechet), ("kernel_distance", kernel_distance)):
        value, floor, control = (distance(real, other) for other in others)
        out[name] = {"value": value, "floor": floor, "mean_only": control, "images": min(COMPARED, len(holdout.pixels))}
    view = image_view.View(image_view.of(synthetic), holdout.pixels.shape[1])
    near, near_holdout = (memorisation.count(view.nearest(i.pixels)) for i in (train, holdout))
    out["memorisation"] = memorisation.figure(near, near_holdout)
    for figure in out.values():
        figure["source"] = SOURCE
    return out


def judge(learned: Images, tested: Images, classes: int, what: str) -> tuple[dict[str, float | None], str]:
    """Area under the ROC curve (one against the rest), balanced accuracy and accuracy on ``tested``, or why there are none."""
    empty: dict[str, float | None] = {"auc": None, "balanced_accuracy": None, "accuracy": None}
    if classes < 2 or len(np.unique(learned.label)) < classes:
        return empty, "the learner saw fewer than two classes or not all of them"
    if len(np.unique(tested.label)) < classes:
        return empty, "the hold-out lacks a class"
    network = _classifier(learned, classes, what)
    with torch.no_grad():
        pixels = torch.from_numpy(tested.pixels)
        chance = (
            torch.cat([network(pixels[i : i + 500]).softmax(1) for i in range(0, len(pixels), 500)]).double().numpy()
        )
    chance /= chance.sum(axis=1, keepdims=True)
    guess = chance.argmax(1)
    auc = roc_auc_score(tested.label, chance[:, 1] if classes == 2 else chance, multi_class="ovr")
    return {
        "auc": float(auc),
        "balanced_accuracy": float(balanced_accuracy_score(tested.label, guess)),
        "accuracy": float(accuracy_score(tested.label, guess)),
    }, ""


def _classifier(learned: Images, classes: int, what: str) -> nn.Module:
    """Three strided convolutions, seeded; classes weigh alike, images are shifted by up to two pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        wide = learned.pixels.shape[1]
        for channels in (16, 32, 64):
            layers += [nn.Conv2d(wide, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU()]
            wide = channels
        network = nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * wide, classes)
        )
        pixels, label = torch.from_numpy(learned.pixels), torch.from_numpy(learned.label)
        counts = torch.bincount(label, minlength=classes).float()
        weight = counts.sum() / (classes * counts.clamp(min=1))
        optimiser = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, STEPS)
        network.train()
        for _ in track(range(STEPS), what, STEPS):
            at = torch.randint(0, len(label), (BATCH,))
            shift = [int(s) for s in torch.randint(-2, 3, (2,))]
            loss = F.cross_entropy(network(_centred(torch.roll(pixels[at], shift, (2, 3)))), label[at], weight=weight)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return nn.Sequential(_Centre(), network.eval())


class _Centre(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return _centred(pixels)


def _centred(pixels: Tensor) -> Tensor:
    return pixels * 2 - 1


def _some(images: Images) -> NDArray[np.float32]:
    """The same number of images of every source, drawn without a look at them."""
    order = np.random.default_rng(0).permutation(len(images.pixels))
    return images.pixels[order[:COMPARED]]
