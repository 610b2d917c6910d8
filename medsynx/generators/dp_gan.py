"""``dp-gan``: a generator trained against critics that learn from noised gradients only.

First the single columns are summed (``margins``): the generator starts from them, as independent columns, and is held near them. Then it learns
how columns hang together, in one of two ways (``gradients``):

- ``local``: each site trains a critic of its own with DP-SGD (:mod:`medsynx.generators.dp_gan_training`) and the shared generator against it. The
  critic stays; the generator's weights leave and are averaged. Few exchanges; each site's noise is all its own.
- ``summed``: there is one public critic. In each exchange a Poisson sample of every site's patients gives clipped gradients, as bounded integers
  (:mod:`medsynx.generators.dp_gan_sum`), to a sum that is noised once over all sites: DP-SGD on the union. The coordinator does the rest.

A generator only ever sees a critic, so it is post-processing of a DP mechanism. This module needs no torch.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from medsynx import codec
from medsynx.generators import dp_gan_sum, onnx_model
from medsynx.generators.averaging import advance, weights_of
from medsynx.generators.base import Arrays, Artefact, Contribution, Patients, State, Total
from medsynx.generators.gan_parameters import GanParameters
from medsynx.generators.graphical.query import Query
from medsynx.generators.table_sum import TableSum
from medsynx.plan import PricedStep, Sampling, Step
from medsynx.study import Study

MARGINS = "margins"
MARGINS_SHARE = 0.1  #: of the family's budget
ROUNDS = {"local": 5, "summed": 150}


class Parameters(GanParameters):
    """Settings of tables beside those of every GAN; the coordinator's (``centre``, ``server``, ``proximal``) are of ``local``.

    Attributes:
        gradients: ``local`` or ``summed``, see the module.
        rounds: exchanges with the sites after the first; 5 of them (``local``) or 150 (``summed``) when omitted.
        hidden: width of the generator's hidden layers.
        critic_hidden: width of the critic's. In ``summed`` its weights are what leaves a site each round.
    """

    gradients: Literal["local", "summed"] = "local"
    rounds: int | None = Field(default=None, ge=1, le=2000)
    hidden: int = Field(default=128, ge=8, le=1024)
    critic_hidden: int = Field(default=32, ge=4, le=1024)

    @property
    def exchanges(self) -> int:
        """Rounds of the training."""
        return self.rounds or ROUNDS[self.gradients]


def shapes(study: Study) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the generator's weights: two hidden layers with layer norm, then one block of logits a column."""
    p, out = Parameters.model_validate(study.family.parameters), sum(codec.sizes(study))
    h, z = p.hidden, p.latent
    return {
        "in.weight": (h, z),
        "in.bias": (h,),
        "norm1.weight": (h,),
        "norm1.bias": (h,),
        "mid.weight": (h, h),
        "mid.bias": (h,),
        "norm2.weight": (h,),
        "norm2.bias": (h,),
        "out.weight": (out, h),
        "out.bias": (out,),
    }


def initial_weights(study: Study, margins: list[float] | None = None) -> Arrays:
    """Where every site and the coordinator start: a public draw seeded by the study's digest, on which no privacy rests.

    Args:
        margins: the measured columns, each adding up to 1, one after the other: the generator then starts near them.
    """
    rng = np.random.default_rng(int(study.digest[:16], 16))
    out: Arrays = {}
    for name, shape in shapes(study).items():
        if name.startswith("norm"):
            out[name] = np.full(shape, float(name.endswith("weight")), np.float32)
        elif name.endswith("weight"):
            out[name] = rng.normal(0, (2 / shape[1]) ** 0.5 if name != "out.weight" else 0.05, shape).astype(np.float32)
        else:
            out[name] = np.zeros(shape, np.float32)
    if margins is not None:
        out["out.bias"] = np.log(np.asarray(margins) + 1e-5).astype(np.float32)
    return out


def columns(study: Study) -> TableSum:
    """The tables of the first step: every column alone."""
    sizes = codec.sizes(study)
    return TableSum([Query.full(sizes, (j,)) for j in range(len(sizes))])


class DpGan:
    """The family; see :class:`medsynx.generators.base.Family` for the verbs."""

    def parameters(self, raw: dict[str, Any]) -> Parameters:
        """See :class:`Parameters`."""
        return Parameters.model_validate(raw)

    def plan(self, study: Study) -> tuple[Step, ...]:
        """The columns alone, then one model-update or one sum of gradients a round."""
        p, tables = self.parameters(study.family.parameters), columns(study)
        first = Step(MARGINS, "secure-sum", "train", tables.size, MARGINS_SHARE, tables.sensitivity(study.privacy))
        if p.gradients == "summed":
            size, sampling = dp_gan_sum.size(sum(codec.sizes(study)), p.critic_hidden), Sampling(p.sample_rate, 1)
            rounds = [
                Step(f"round {k}", "secure-sum", "train", size, 0.0, dp_gan_sum.SENSITIVITY, sampling)
                for k in range(1, p.exchanges + 1)
            ]
        else:
            size, sampling = (
                sum(int(np.prod(s)) for s in shapes(study).values()),
                Sampling(p.sample_rate, p.critic_steps),
            )
            rounds = [
                Step(f"round {k}", "model-update", "train", size, 0.0, sampling=sampling, reach=p.reach)
                for k in range(1, p.exchanges + 1)
            ]
        return (first, *rounds)

    def next_step(self, study: Study, state: State) -> Step | None:
        """The columns, then the round after the last combined one."""
        steps = self.plan(study)
        done = 1 + int(state.facts["rounds"]) if "rounds" in state.facts else 0
        return steps[done] if done < len(steps) else None

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """Counts of columns; clipped gradients of the public critic; or a generator trained at the site, whose critic stays."""
        p = self.parameters(study.family.parameters)
        if priced.step.name == MARGINS:
            return Contribution({"sum": columns(study).count(patients, study.privacy)})
        if p.gradients == "summed":
            return Contribution({"sum": dp_gan_sum.sampled_sum(study, p, priced, state.arrays, patients)})
        from medsynx.generators.dp_gan_training import train

        weights = weights_of(state.arrays)
        if {n: a.shape for n, a in weights.items()} != shapes(study):
            raise ValueError("the generator does not have the study's shape")
        generator, critic = train(study, p, priced, state, weights, patients, keep)
        return Contribution(generator, keep=critic)

    def combine(self, study: Study, priced: PricedStep, state: State, total: Total) -> State:
        """The columns start the generator; then one step of the coordinator's optimiser a round."""
        p = self.parameters(study.family.parameters)
        if priced.step.name == MARGINS:
            facts = measured(study, total)
            weights = initial_weights(study, facts["margins"])
            if p.gradients == "summed":
                weights = dp_gan_sum.start(study, p, weights)
            return State(weights, facts)
        facts = {**state.facts, "rounds": int(state.facts["rounds"]) + 1}
        if p.gradients == "summed":
            from medsynx.generators.dp_gan_coordinator import learn

            return State(learn(study, p, state, total), facts)
        return State(advance(state.arrays, total.arrays, p.server, p.server_rate), facts)

    def export(self, study: Study, state: State) -> Artefact:
        """The generator as ONNX: ``z`` (rows, latent) to logits (rows, sum of sizes)."""
        p = self.parameters(study.family.parameters)
        weights = dp_gan_sum.published(state.arrays) if p.gradients == "summed" else weights_of(state.arrays)
        model = to_onnx(weights, p.latent, sum(codec.sizes(study)))
        return Artefact(
            {"generator.onnx": model}, {"kind": "onnx-softmax", "file": "generator.onnx", "latent": p.latent}
        )


def measured(study: Study, total: Total) -> dict[str, Any]:
    """What the first step tells: ``margins`` (each column adds up to 1), about how many ``patients`` there are, over how many ``sites``."""
    found = [np.maximum(m.values.ravel(), 0) for m in columns(study).measurements(total.arrays["sum"], total.noise_std)]
    margins = [(v / v.sum() if v.sum() > 0 else np.full(len(v), 1 / len(v))).tolist() for v in found]
    records = float(np.median([v.sum() for v in found]))
    return {
        "margins": [x for column in margins for x in column],
        "patients": max(1.0, records),
        "sites": total.sites,
        "rounds": 0,
    }


def to_onnx(weights: Arrays, latent: int, width: int) -> bytes:
    """The generator network as an ONNX model (opset 17), built node by node so that the coordinator needs no torch."""
    from onnx import helper

    nodes, last = [], "z"
    for layer, norm in (("in", "norm1"), ("mid", "norm2")):
        nodes += [
            helper.make_node("Gemm", [last, f"{layer}.weight", f"{layer}.bias"], [layer], transB=1),
            helper.make_node(
                "LayerNormalization", [layer, f"{norm}.weight", f"{norm}.bias"], [norm], axis=-1, epsilon=1e-5
            ),
            helper.make_node("Relu", [norm], [f"{layer}.relu"]),
        ]
        last = f"{layer}.relu"
    nodes.append(helper.make_node("Gemm", [last, "out.weight", "out.bias"], ["logits"], transB=1))
    return onnx_model.build(nodes, weights, {"z": (latent, False)}, width)
