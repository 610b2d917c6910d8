"""``image-dp-gan``: a convolutional generator trained against critics that learn from noised gradients only.

First come the two sums of ``moments``: the generator starts as that family's Gaussians, and its classes' means are held near the measured ones.
Then it learns what Gaussians over low frequencies cannot show, in one of two ways (``gradients``):

- ``local``: each site trains a critic of its own with DP-SGD (:mod:`medsynx.generators.gan_training`) and the shared generator against it. The critic
  stays; the generator's weights leave and are averaged. Few exchanges; each site's noise is all its own.
- ``summed``: there is one public critic. In each exchange a Poisson sample of every site's patients gives clipped gradients, as bounded integers
  (:mod:`medsynx.generators.image_dp_gan_sum`), to a sum that is noised once over all sites: DP-SGD on the union. The coordinator does the rest.

A generator only ever sees a critic, so it is post-processing of a DP mechanism. This module needs no torch.
"""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from medsynx.generators import dp_gan_sum, image_sizes
from medsynx.generators.averaging import advance, weights_of
from medsynx.generators.base import Arrays, Artefact, Contribution, ImagePatients, Patients, State, Total
from medsynx.generators.gan_parameters import GanParameters
from medsynx.generators.image_sum import left_out, present
from medsynx.generators.moments import COVARIANCES, MEANS, Moments, basis_of
from medsynx.generators.torch_needed import torch_needed
from medsynx.plan import PricedStep, Sampling, Step
from medsynx.study import Study

ROUNDS = {"local": 3, "summed": 60}
START_SHARE = 0.5  #: of the family's budget for the two sums
MOMENTS = Moments()


class Parameters(GanParameters):
    """Settings of images beside those of every GAN.

    Attributes:
        gradients: ``local`` or ``summed``, see the module.
        rounds: exchanges with the sites after the first; 3 of them (``local``) or 60 (``summed``) when omitted.
        critic_width: channels of the critic's first convolution. A small critic takes less noise; in ``summed`` it is what leaves a site each round.
    """

    gradients: Literal["local", "summed"] = "local"
    rounds: int | None = Field(default=None, ge=1, le=2000)
    critic_width: int = Field(default=6, ge=2, le=128)
    critic_steps: int = Field(default=30, ge=1, le=10_000)
    generator_steps: int = Field(default=2, ge=1, le=100)
    sample_rate: float = Field(default=0.2, gt=0, le=1)
    batch: int = Field(default=64, ge=8, le=4096)
    clip_norm: float = Field(default=0.5, gt=0, le=100)
    generator_rate: float = Field(default=2e-4, gt=0, le=0.1)
    critic_rate: float = Field(default=3e-3, gt=0, le=0.1)
    critic_decay: float = Field(default=0.0, ge=0, le=50)

    @property
    def exchanges(self) -> int:
        """Rounds of the training."""
        return self.rounds or ROUNDS[self.gradients]


def taught(study: Study) -> Study:
    """The study as ``moments`` sees it."""
    return study.with_family("moments")


def shapes(study: Study) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the generator's weights."""
    assert study.image is not None
    latent, spec = Parameters.model_validate(study.family.parameters).latent, study.image
    return image_sizes.generator_from_moments(spec.shape, len(spec.classes), latent, basis_of(taught(study)).size)


def critic_shapes(study: Study) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the critic's."""
    assert study.image is not None
    width = Parameters.model_validate(study.family.parameters).critic_width
    return image_sizes.critic(study.image.shape, len(study.image.classes), width)


def count(weights: dict[str, tuple[int, ...]]) -> int:
    """How many numbers they are."""
    return sum(math.prod(shape) for shape in weights.values())


def measured(study: Study, state: State, sites: int) -> tuple[Arrays, dict[str, Any]]:
    """What the two sums tell: means and factors of the classes' Gaussians, and facts - shares of the classes, about how many ``patients``.

    Raises:
        MedsynxError: ``patients-too-few`` when noise hides every class.
    """
    artefact = MOMENTS.export(taught(study), state)
    with np.load(io.BytesIO(artefact.files["moments.npz"])) as held:
        gaussians = {n: held[n] for n in ("means", "factors")}
    cargo = basis_of(taught(study)).means
    _, counts = cargo.split(state.arrays[MEANS])
    std = cargo.count_std(float(state.facts["noise_std"][MEANS]))
    facts = {
        "means": gaussians["means"].tolist(),
        "counts": counts.tolist(),
        "count_std": std,
        "shares": artefact.sampler["shares"],
        "patients": max(1.0, float(counts[present(counts, std)].sum())),
        "sites": sites,
        "rounds": 0,
    }
    return gaussians, facts


class ImageDpGan:
    """The family; see :class:`medsynx.generators.base.Family` for the verbs."""

    def parameters(self, raw: dict[str, Any]) -> Parameters:
        """See :class:`Parameters`."""
        return Parameters.model_validate(raw)

    def plan(self, study: Study) -> tuple[Step, ...]:
        """The sums of ``moments``, then one model-update or one sum of gradients a round."""
        p = self.parameters(study.family.parameters)
        first = (replace(s, share=START_SHARE * s.share) for s in MOMENTS.plan(taught(study)))
        names = [f"round {k}" for k in range(1, p.exchanges + 1)]
        if p.gradients == "summed":
            size, once = count(critic_shapes(study)), Sampling(p.sample_rate, 1)
            return (*first, *(Step(n, "secure-sum", "train", size, 0.0, dp_gan_sum.SENSITIVITY, once) for n in names))
        size, sampling = count(shapes(study)), Sampling(p.sample_rate, p.critic_steps)
        updates = (Step(n, "model-update", "train", size, 0.0, sampling=sampling, reach=p.reach) for n in names)
        return (*first, *updates)

    def next_step(self, study: Study, state: State) -> Step | None:
        """The sums, then the round after the last combined one."""
        plan = self.plan(study)
        if "rounds" not in state.facts:
            return next(s for s in plan if s.name not in state.arrays)
        done = 2 + int(state.facts["rounds"])
        return plan[done] if done < len(plan) else None

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """What ``moments`` sums; clipped gradients of the public critic; or a generator trained at the site, whose critic stays.

        Raises ValueError when the state does not have the study's shape.
        """
        assert isinstance(patients, ImagePatients)
        if priced.step.name in (MEANS, COVARIANCES):
            return MOMENTS.contribute(taught(study), priced, state, patients, keep)
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
        """The sums start the generator; then one step of the coordinator's optimiser a round."""
        p, name = self.parameters(study.family.parameters), priced.step.name
        if name in (MEANS, COVARIANCES):
            state = MOMENTS.combine(taught(study), priced, state, total)
            if name == MEANS:
                return state
            with torch_needed():
                from medsynx.generators.image_dp_gan_networks import start
                from medsynx.generators.image_dp_gan_sum import begin
            gaussians, facts = measured(study, state, total.sites)
            weights = start(study, gaussians)
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
            from medsynx.generators.image_dp_gan_networks import export
        manifest = {"kind": "onnx-images", "file": "generator.onnx", "latent": p.latent, "shares": facts["shares"]}
        notes = (
            f"The generator started as the Gaussians of `moments` ({START_SHARE:.0%} of the budget) and learnt from critics under DP-SGD.",
            *left_out(study.image.classes, np.asarray(facts["counts"]), float(facts["count_std"])),
        )
        weights = dp_gan_sum.published(state.arrays) if p.gradients == "summed" else weights_of(state.arrays)
        return Artefact({"generator.onnx": export(study, weights)}, manifest, notes)
