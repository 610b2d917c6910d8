"""Model updates of several sites -> one: a mean or a robust centre, then a step of the coordinator's own optimiser.

Every site counts once: numbers of patients are private. FedAvg (McMahan et al. 2017) is the mean with a plain step; FedAvgM (Hsu, Qi, Brown 2019) and
FedAdam (Reddi et al. 2021, algorithm 2) treat the sites' mean change as a gradient; the trimmed mean and the median are those of Yin et al. 2018.
All of it is post-processing of what the sites released.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from medsynx.generators.base import Arrays

Centre = Literal["mean", "trimmed-mean", "median"]
Server = Literal["average", "momentum", "adam"]
TRIMMED = 0.2  #: share of the sites left out at either end of each weight
MOMENTUM, SECOND, TINY = 0.9, 0.99, 1e-3  #: FedAdam's tau, as its authors found best over many tasks
BETAS = (0.5, 0.9)  #: of Adam in every adversarial training at a site
OWN = "server."  #: names of the optimiser's arrays in a state; they stay at the coordinator


def adam_reach(rate: float, steps: int, betas: tuple[float, float]) -> float:
    """How far ``steps`` steps of Adam at this rate can move one weight, whatever the gradients.

    A step is at most ``rate`` times mean / root mean square of the past gradients under two exponential windows, which Cauchy-Schwarz bounds for
    ``betas[0] ** 2 < betas[1]`` (cf. Kingma and Ba 2015, section 2.1); the corrections of both windows are below 1 then. One percent for rounding.
    """
    first, second = betas
    return 1.01 * rate * steps * (1 - first) / math.sqrt(1 - second) / math.sqrt(1 - first**2 / second)


def centre(updates: list[Arrays], how: Centre) -> Arrays:
    """One set of weights from several of the same names and shapes, float32.

    ``trimmed-mean`` leaves out the lowest and the highest fifth of each weight (at least one site of three), so that a minority of sites
    cannot move it at will.
    """
    out: Arrays = {}
    for name in sorted(updates[0]):
        stack = np.stack([u[name].astype(np.float64) for u in updates])
        if how == "median":
            value = np.median(stack, axis=0)
        elif how == "trimmed-mean" and len(stack) > 2:
            cut = max(1, int(TRIMMED * len(stack)))
            value = np.sort(stack, axis=0)[cut : len(stack) - cut].mean(axis=0)
        else:
            value = stack.mean(axis=0)
        out[name] = value.astype(np.float32)
    return out


def advance(before: Arrays, found: Arrays, how: Server, rate: float) -> Arrays:
    """The next state: weights, and under names that begin with ``server.`` the optimiser's moments.

    Args:
        before: the last state, moments included.
        found: the sites' centre.
        rate: the coordinator's learning rate; 1 with ``average`` takes the centre as it is.
    """
    out: Arrays = {}
    for name, target in found.items():
        change = target - before[name]
        if how != "average":
            first = _old(before, f"{OWN}first.{name}", change)
            first = MOMENTUM * first + (change if how == "momentum" else (1 - MOMENTUM) * change)
            out[f"{OWN}first.{name}"] = first
            change = first
        if how == "adam":
            square = (target - before[name]) ** 2
            second = SECOND * _old(before, f"{OWN}second.{name}", change) + (1 - SECOND) * square
            out[f"{OWN}second.{name}"] = second
            change = first / (np.sqrt(second) + TINY)
        out[name] = (before[name] + rate * change).astype(np.float32)
    return out


def weights_of(arrays: Arrays) -> Arrays:
    """A state's weights without the optimiser's moments."""
    return {n: a for n, a in arrays.items() if not n.startswith(OWN)}


def _old(arrays: Arrays, name: str, like: np.ndarray) -> np.ndarray:
    return arrays[name] if name in arrays else np.zeros_like(like)
