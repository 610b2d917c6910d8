"""Figures of synthetic images computed straight on real ones, for `medsynx simulate --holdout`. They are not private and say so.

The classifier is a small convolutional network, the space of the Frechet distance (Heusel et al. 2017) a fixed random one: neither needs weights
from elsewhere. Random convolutions see shape and contrast and hardly fine texture; read the distance beside its floor and the mean-only control.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from evaluation.direct import SOURCE
from medsynx.image_samplers import Images
from medsynx.progress import track

SYNTHETIC = 3000  #: synthetic images that are judged
STEPS, BATCH = 250, 128  #: of training the classifier
#: images of each side of a Frechet distance, and principal directions of the real ones that it looks at
COMPARED, DIRECTIONS = 300, 64
LEARNER = "small convolutional network"


def figures(classes: tuple[str, ...], train: Images, holdout: Images, synthetic: Images) -> dict[str, Any]:
    """TSTR and TRTR on the hold-out, and the Frechet distance of synthetic to hold-out images with the training images' as floor."""
    out: dict[str, Any] = {}
    for name, learned in (("tstr", synthetic), ("trtr", train)):
        found, why = judge(learned, holdout, len(classes), f"judging: {name.upper()}")
        for key, value in found.items():
            out[f"{name}_{key}"] = {"value": value, "learner": LEARNER} | ({"why": why} if why else {})
    space = RandomSpace(holdout.pixels.shape[1])
    real, most = space(_some(holdout)), len(holdout.pixels)
    out["frechet"] = {
        "value": frechet(real, space(_some(synthetic))),
        "floor": frechet(real, space(_some(train))),
        "mean_only": frechet(real, space(_some(mean_only(train)))),
        "images": min(COMPARED, most),
    }
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


class RandomSpace:
    """A fixed random network: three orthogonal convolutions, each layer averaged on a 2 x 2 grid."""

    def __init__(self, channels: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.layers = [nn.Conv2d(channels, 32, 5, 1, 2), nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 128, 3, 2, 1)]
            for layer in self.layers:
                nn.init.orthogonal_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(self, pixels: NDArray[np.float32]) -> NDArray[np.float64]:
        """(images, channels, height, width) -> (images, 896)."""
        out = []
        for start in range(0, len(pixels), 250):
            found, parts = (torch.from_numpy(pixels[start : start + 250]) - 0.5) * 4, []
            for layer in self.layers:
                found = F.leaky_relu(layer(found), 0.2) * 1.5
                parts.append(F.adaptive_avg_pool2d(found, 2).flatten(1))
            out.append(torch.cat(parts, 1))
        return torch.cat(out).double().numpy()


def frechet(real: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Frechet distance of two Gaussians along the principal directions of ``real``, in units of its largest standard deviation.

    None for fewer than 16 images.
    """
    if min(len(real), len(other)) < 16:
        return None
    mean = real.mean(axis=0)
    _, spread, directions = np.linalg.svd(real - mean, full_matrices=False)
    kept = min(DIRECTIONS, len(real) // 8, len(directions))
    unit = spread[0] / np.sqrt(len(real))
    a, b = ((x - mean) @ directions[:kept].T / unit for x in (real, other))
    ca, cb = np.cov(a.T).reshape(kept, kept), np.cov(b.T).reshape(kept, kept)
    root = sqrtm(ca @ cb + 1e-9 * np.eye(kept)).real
    return float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum() + np.trace(ca + cb - 2 * root))


def mean_only(train: Images) -> Images:
    """The control: images that show the mean of their class and a little smooth noise, as many of each class as there are."""
    from scipy.fft import idctn

    rng = np.random.default_rng(0)
    waves = np.zeros(train.pixels.shape, np.float32)
    waves[:, :, :10, :10] = rng.normal(0, 0.1, waves[:, :, :10, :10].shape)
    means = {k: train.pixels[train.label == k].mean(axis=0) for k in np.unique(train.label)}
    pixels = np.stack([means[k] for k in train.label]) + idctn(waves, axes=(2, 3), norm="ortho")
    return Images(np.clip(pixels, 0, 1).astype(np.float32), train.label)


def _some(images: Images) -> NDArray[np.float32]:
    """The same number of images of every source, drawn without a look at them."""
    order = np.random.default_rng(0).permutation(len(images.pixels))
    return images.pixels[order[:COMPARED]]
