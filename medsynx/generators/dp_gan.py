"""``dp-gan``: a generator trained against critics that never leave their hospitals, averaged over rounds.

Each site keeps its own critic, trained with DP-SGD (:mod:`medsynx.generators.dp_gan_training`), and trains the shared generator against it. The
generator only ever sees the critic, so it is post-processing of a DP mechanism and its weights may leave. This module needs no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medsynx import codec
from medsynx.generators.averaging import Centre, Server, advance, weights_of
from medsynx.generators.base import Arrays, Artefact, Contribution, Patients, State, Total
from medsynx.plan import PricedStep, Sampling, Step
from medsynx.study import Study


class Parameters(BaseModel):
    """Training settings; all public.

    Attributes:
        rounds: exchanges with the sites.
        critic_steps: noisy critic steps a round; the generator steps once every ``generator_every`` of them.
        sample_rate: chance of each patient to be in a critic step's batch.
        batch: public size of a batch of fakes, and the constant the noised gradient is divided by (never the private batch size).
        clip_norm: bound of one patient's gradient.
        hidden: width of the hidden layers.
        latent: numbers of noise the generator starts from.
        learning_rate: of both networks (Adam).
        centre: how the sites' weights become one; ``median`` and ``trimmed-mean`` hold against a minority of bad sites.
        server: the coordinator's step towards it: FedAvg, FedAvgM or FedAdam.
        server_rate: length of that step.
        proximal: FedProx (Li et al. 2020): weight of half the squared distance to the shared generator in a site's loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rounds: int = Field(default=5, ge=1, le=200)
    critic_steps: int = Field(default=300, ge=1, le=10_000)
    generator_every: int = Field(default=3, ge=1, le=100)
    sample_rate: float = Field(default=0.05, gt=0, le=1)
    batch: int = Field(default=64, ge=8, le=4096)
    clip_norm: float = Field(default=1.0, gt=0, le=100)
    hidden: int = Field(default=96, ge=8, le=1024)
    latent: int = Field(default=48, ge=2, le=512)
    learning_rate: float = Field(default=1e-3, gt=0, le=0.1)
    centre: Centre = "mean"
    server: Server = "average"
    server_rate: float = Field(default=1.0, gt=0, le=10)
    proximal: float = Field(default=0.0, ge=0, le=100)


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


def initial_weights(study: Study) -> Arrays:
    """Where every site and the coordinator start: a public draw seeded by the study's digest. No privacy rests on it."""
    rng = np.random.default_rng(int(study.digest[:16], 16))
    out: Arrays = {}
    for name, shape in shapes(study).items():
        if name.startswith("norm"):
            out[name] = np.full(shape, float(name.endswith("weight")), np.float32)
        elif name.endswith("weight"):
            out[name] = rng.normal(0, (2 / shape[1]) ** 0.5 if name != "out.weight" else 0.05, shape).astype(np.float32)
        else:
            out[name] = np.zeros(shape, np.float32)
    return out


class DpGan:
    """The family; see :class:`medsynx.generators.base.Family` for the verbs."""

    def parameters(self, raw: dict[str, Any]) -> Parameters:
        """See :class:`Parameters`."""
        return Parameters.model_validate(raw)

    def plan(self, study: Study) -> tuple[Step, ...]:
        """One model-update a round."""
        p = self.parameters(study.family.parameters)
        size = sum(int(np.prod(s)) for s in shapes(study).values())
        sampling = Sampling(p.sample_rate, p.critic_steps)
        return tuple(
            Step(f"round {k}", "model-update", "train", size, 0.0, sampling=sampling) for k in range(1, p.rounds + 1)
        )

    def next_step(self, study: Study, state: State) -> Step | None:
        """The round after the last combined one."""
        steps, done = self.plan(study), int(state.facts.get("rounds", 0))
        return steps[done] if done < len(steps) else None

    def contribute(
        self, study: Study, priced: PricedStep, state: State, patients: Patients, keep: Arrays
    ) -> Contribution:
        """Train at the site: the generator's weights leave, the critic stays."""
        from medsynx.generators.dp_gan_training import train

        weights = weights_of(state.arrays) or initial_weights(study)
        if {n: a.shape for n, a in weights.items()} != shapes(study):
            raise ValueError("the generator does not have the study's shape")
        generator, critic = train(study, self.parameters(study.family.parameters), priced, weights, patients, keep)
        return Contribution(generator, keep=critic)

    def combine(self, study: Study, priced: PricedStep, state: State, total: Total) -> State:
        """One step of the coordinator's optimiser starts the next round."""
        p = self.parameters(study.family.parameters)
        arrays = advance(state.arrays or initial_weights(study), total.arrays, p.server, p.server_rate)
        return State(arrays, {"rounds": int(state.facts.get("rounds", 0)) + 1})

    def export(self, study: Study, state: State) -> Artefact:
        """The generator as ONNX: ``z`` (rows, latent) to logits (rows, sum of sizes)."""
        p = self.parameters(study.family.parameters)
        model = to_onnx(weights_of(state.arrays), p.latent, sum(codec.sizes(study)))
        return Artefact(
            {"generator.onnx": model}, {"kind": "onnx-softmax", "file": "generator.onnx", "latent": p.latent}
        )


def to_onnx(weights: Arrays, latent: int, width: int) -> bytes:
    """The generator network as an ONNX model (opset 17), built node by node so that the coordinator needs no torch."""
    from onnx import TensorProto, checker, helper, numpy_helper

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
    graph = helper.make_graph(
        nodes,
        "generator",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["rows", latent])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", width])],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="medsynx")
    model.ir_version = 9
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
