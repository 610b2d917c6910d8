"""``image-dp-gan``: a convolutional generator trained against critics that learn from noised gradients only.

First the means of the classes are summed (``means``), at low spatial frequencies, with the numbers of patients: the generator starts from
them and is held near them. Then it learns how images of a class differ, in one of two ways (``gradients``):

- ``local``: each site trains a critic of its own with DP-SGD (:mod:`medsynx.generators.gan_training`) and the shared generator against it. The critic
  stays; the generator's weights leave and are averaged. Few exchanges; each site's noise is all its own.
- ``summed``: there is one public critic. In each exchange a Poisson sample of every site's patients gives clipped gradients, as bounded integers
  (:mod:`medsynx.generators.image_dp_gan_sum`), to a sum that is noised once over all sites: DP-SGD on the union. The coordinator does the rest.

A generator only ever sees a critic, so it is post-processing of a DP mechanism. This module needs no torch.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import Field

from medsynx.generators import dp_gan_sum, image_sizes
from medsynx.generators.averaging import advance, weights_of
from medsynx.generators.base import Arrays, Artefact, Contribution, ImagePatients, Patients, State, Total
from medsynx.generators.gan_parameters import GanParameters
from medsynx.generators.image_sum import left_out, present, shares
from medsynx.generators.moments import Basis, in_ball
from medsynx.generators.torch_needed import torch_needed
from medsynx.plan import PricedStep, Sampling, Step
from medsynx.study import Study

MEANS = "means"
ROUNDS = {"local": 10, "summed": 150}
MEANS_SHARE = 0.1  #: of the family's budget
FREQUENCIES = 10  #: K of the K x K lowest frequencies of the means


class Parameters(GanParameters):
    """Settings of images beside those of every GAN.

    Attributes:
        gradients: ``local`` or ``summed``, see the module.
        rounds: exchanges with the sites after the first; 10 of them (``local``) or 150 (``summed``) when omitted.
        critic_width: channels of the critic's first convolution. A small critic takes less noise; in ``summed`` it is what leaves a site each round.
    """

    gradients: Literal["local", "summed"] = "local"
    rounds: int | None = Field(default=None, ge=1, le=2000)
    critic_width: int = Field(default=8, ge=2, le=128)
    critic_steps: int = Field(default=60, ge=1, le=10_000)
    generator_every: int = Field(default=2, ge=1, le=1000)
    generator_steps: int = Field(default=1, ge=1, le=100)
    sample_rate: float = Field(default=0.1, gt=0, le=1)
    batch: int = Field(default=64, ge=8, le=4096)
    generator_rate: float = Field(default=1e-3, gt=0, le=0.1)
    critic_rate: float = Field(default=1e-3, gt=0, le=0.1)
    critic_decay: float = Field(default=0.0, ge=0, le=50)

    @property
    def exchanges(self) -> int:
        """Rounds of the training."""
        return self.rounds or ROUNDS[self.gradients]


def basis(study: Study) -> Basis:
    """The frequencies of the means, and the layout of their sum."""
    assert study.image is not None
    return Basis(study.image, FREQUENCIES)


def shapes(study: Study) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the generator's weights."""
    assert study.image is not None
    latent = Parameters.model_validate(study.family.parameters).latent
    return image_sizes.generator_from_means(study.image.shape, len(study.image.classes), latent)


def critic_shapes(study: Study) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the critic's."""
    assert study.image is not None
    width = Parameters.model_validate(study.family.parameters).critic_width
    return image_sizes.critic(study.image.shape, len(study.image.classes), width)


def count(weights: dict[str, tuple[int, ...]]) -> int:
    """How many numbers they are."""
    return sum(math.prod(shape) for shape in weights.values())


def measured(study: Study, total: Total) -> dict[str, Any]:
    """What the first step tells: each class's mean coefficients (0 for one that noise hides) and share, about how many ``patients`` there are."""
    where = basis(study)
    sums, counts = where.means.split(total.arrays["sum"])
    std = where.means.count_std(total.noise_std)
    here = present(counts, std)
    means = where.mean_radius * sums * here[:, None] / np.maximum(counts, 1.0)[:, None]
    return {
        "means": means.tolist(),
        "counts": counts.tolist(),
        "count_std": std,
        "shares": shares(counts, std),
        "patients": max(1.0, float(counts[here].sum())),
        "sites": total.sites,
        "rounds": 0,
    }


class ImageDpGan:
    """The family; see :class:`medsynx.generators.base.Family` for the verbs."""

    def parameters(self, raw: dict[str, Any]) -> Parameters:
        """See :class:`Parameters`."""
        return Parameters.model_validate(raw)

    def plan(self, study: Study) -> tuple[Step, ...]:
        """The means, then one model-update or one sum of gradients a round."""
        p, where = self.parameters(study.family.parameters), basis(study)
        first = Step(MEANS, "secure-sum", "train", where.means.size, MEANS_SHARE, where.means.sensitivity)
        names = [f"round {k}" for k in range(1, p.exchanges + 1)]
        if p.gradients == "summed":
            size, once = count(critic_shapes(study)), Sampling(p.sample_rate, 1)
            return (first, *(Step(n, "secure-sum", "train", size, 0.0, dp_gan_sum.SENSITIVITY, once) for n in names))
        size, sampling = count(shapes(study)), Sampling(p.sample_rate, p.critic_steps)
        return (first, *(Step(n, "model-update", "train", size, 0.0, sampling=sampling) for n in names))

    def next_step(self, study: Study, state: State) -> Step | None:
        """The means, then the round after the last combined one."""
        steps = self.plan(study)
        done = 1 + int(state.facts["rounds"]) if "rounds" in state.facts else 0
        return steps[done] if done < len(steps) else None

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """Sums of coefficients and counts; or a generator trained at the site, whose critic stays.

        Raises ValueError when the state does not have the study's shape.
        """
        assert isinstance(patients, ImagePatients)
        where = basis(study)
        if priced.step.name == MEANS:
            return Contribution(
                {"sum": where.means.add_up(patients, lambda x, _: in_ball(where.coefficients(x), where.mean_radius))}
            )
        if self.parameters(study.family.parameters).gradients == "summed":
            from medsynx.generators.image_dp_gan_sum import sampled_sum

            return Contribution({"sum": sampled_sum(study, priced, state.arrays, patients)})
        from medsynx.generators.image_dp_gan_training import train

        weights = weights_of(state.arrays)
        if {n: a.shape for n, a in weights.items()} != shapes(study):
            raise ValueError("the generator does not have the study's shape")
        generator, critic = train(study, priced, state, weights, patients, keep)
        return Contribution(generator, keep=critic)

    def combine(self, study: Study, priced: PricedStep, state: State, total: Total) -> State:
        """The means start the generator; then one step of the coordinator's optimiser a round."""
        p = self.parameters(study.family.parameters)
        if priced.step.name == MEANS:
            with torch_needed():
                from medsynx.generators.image_dp_gan_sum import begin
                from medsynx.generators.image_dp_gan_training import start
            facts = measured(study, total)
            weights = start(study, facts)
            return State(begin(study, weights) if p.gradients == "summed" else weights, facts)
        facts = {**state.facts, "rounds": int(state.facts["rounds"]) + 1}
        if p.gradients == "summed":
            from medsynx.generators.image_dp_gan_sum import learn

            return State(learn(study, p, state, total), facts)
        return State(advance(state.arrays, total.arrays, p.server, p.server_rate), facts)

    def export(self, study: Study, state: State) -> Artefact:
        """The generator as ONNX, from ``z`` and one-hot ``label`` to pixels."""
        assert study.image is not None
        p, facts = self.parameters(study.family.parameters), state.facts
        with torch_needed():
            from medsynx.generators.image_dp_gan_training import export
        manifest = {"kind": "onnx-images", "file": "generator.onnx", "latent": p.latent, "shares": facts["shares"]}
        notes = (
            "The generator started from noised class means and learnt from critics trained with DP-SGD.",
            *left_out(study.image.classes, np.asarray(facts["counts"]), float(facts["count_std"])),
        )
        weights = dp_gan_sum.published(state.arrays) if p.gradients == "summed" else weights_of(state.arrays)
        return Artefact({"generator.onnx": export(study, weights)}, manifest, notes)
