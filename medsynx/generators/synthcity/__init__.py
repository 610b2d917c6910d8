"""``synthcity``: the library's networks trained at the sites (``mode: shard``) or its plugins trained on private rows (``mode: student``).

A shard (``shard.py``) is Synthcity's torch modules under our DP-SGD. A student (``student.py``) learns at the coordinator, in a process of
its own, from rows of a teacher family that spent the whole budget: post-processing, whatever the plugin does. Nothing but arrays, Parquet,
JSON and ONNX crosses a process.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medsynx import codec
from medsynx.generators.averaging import BETAS, adam_reach, advance, weights_of
from medsynx.generators.base import Arrays, Artefact, Contribution, Family, Patients, State, Total
from medsynx.generators.synthcity import networks
from medsynx.generators.synthcity.catalogue import SURVIVAL
from medsynx.generators.synthcity.parameters import Shard, Student, parse
from medsynx.plan import PricedStep, Sampling, Step
from medsynx.study import Study


class Synthcity:
    """The family; see :class:`medsynx.generators.base.Family` for the verbs."""

    def parameters(self, raw: dict[str, Any]) -> Shard | Student:
        """See :class:`~medsynx.generators.synthcity.parameters.Shard` and ``Student``."""
        return parse(raw)

    def problems(self, study: Study) -> list[str]:
        """What the parameters ask of the rest of the study."""
        p = self.parameters(study.family.parameters)
        if p.plugin in SURVIVAL and not study.survival:
            return [f"family.parameters.plugin: {p.plugin} needs columns with the roles survival_time and event"]
        return []

    def plan(self, study: Study) -> tuple[Step, ...]:
        """One model-update a round, or the teacher's plan."""
        p = self.parameters(study.family.parameters)
        if isinstance(p, Student):
            family, taught = teacher(study, p)
            return family.plan(taught)
        size = sum(int(np.prod(s)) for s in _shapes(study, p).values())
        sampling = Sampling(p.sample_rate, p.steps)
        # tvae and ddpm train the shared network itself, with Adam as torch has it
        reach = adam_reach(p.learning_rate, p.steps, (0.9, 0.999) if p.plugin in ("tvae", "ddpm") else BETAS)
        return tuple(
            Step(f"round {k}", "model-update", "train", size, 0.0, sampling=sampling, reach=reach)
            for k in range(1, p.rounds + 1)
        )

    def next_step(self, study: Study, state: State) -> Step | None:
        """The round after the last combined one, or the teacher's."""
        p = self.parameters(study.family.parameters)
        if isinstance(p, Student):
            family, taught = teacher(study, p)
            return family.next_step(taught, state)
        steps, done = self.plan(study), int(state.facts.get("rounds", 0))
        return steps[done] if done < len(steps) else None

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """Train at the site, or what the teacher contributes."""
        p = self.parameters(study.family.parameters)
        if isinstance(p, Student):
            family, taught = teacher(study, p)
            return family.contribute(taught, priced, state, patients, keep)
        from medsynx.generators.synthcity.shard import train

        weights, shapes = weights_of(state.arrays) or _initial(study, p), _shapes(study, p)
        if {n: a.shape for n, a in weights.items()} != shapes:
            raise ValueError("the network does not have the study's shape")
        made, critic = train(study, p, priced, weights, patients, keep)
        return Contribution(made, keep=critic)

    def combine(self, study: Study, priced: PricedStep, state: State, total: Total) -> State:
        """The mean of the sites starts the next round."""
        p = self.parameters(study.family.parameters)
        if isinstance(p, Student):
            family, taught = teacher(study, p)
            return family.combine(taught, priced, state, total)
        arrays = advance(state.arrays or _initial(study, p), total.arrays, "average", 1.0)
        return State(arrays, {"rounds": int(state.facts.get("rounds", 0)) + 1})

    def export(self, study: Study, state: State) -> Artefact:
        """The network as ONNX, or the trained student."""
        p = self.parameters(study.family.parameters)
        if isinstance(p, Student):
            from medsynx.generators.synthcity.student import train

            family, taught = teacher(study, p)
            return train(study, p, family.export(taught, state))
        weights = weights_of(state.arrays)
        if p.plugin == "ddpm":
            model = networks.denoiser_onnx(weights, p.timesteps)
            return Artefact(
                {"denoiser.onnx": model},
                {"kind": "onnx-diffusion", "file": "denoiser.onnx", "timesteps": p.timesteps},
            )
        prefix, activation = ("decoder.model.", "LeakyRelu") if p.plugin == "tvae" else ("", "Relu")
        model = networks.generator_onnx(weights, prefix, activation, residual=True)
        return Artefact(
            {"generator.onnx": model}, {"kind": "onnx-softmax", "file": "generator.onnx", "latent": p.latent}
        )


def teacher(study: Study, p: Student) -> tuple[Family, Study]:
    """The family a student learns from, and the study as that family sees it."""
    from medsynx.generators import get_family

    return get_family(p.teacher.name), study.with_family(p.teacher.name, p.teacher.parameters)


def _shapes(study: Study, p: Shard) -> networks.Shapes:
    return networks.shapes(p.plugin, sum(codec.sizes(study)), p.hidden, p.latent, p.layers)


def _initial(study: Study, p: Shard) -> Arrays:
    return networks.initial_weights(_shapes(study, p), int(study.digest[:16], 16))
