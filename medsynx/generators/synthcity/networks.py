"""The shapes of Synthcity's networks, their first weights and their ONNX form, without torch and without importing the library.

Names and shapes are those of ``synthcity.plugins.core.models.mlp.MLP`` (0.2.12): ``layers`` hidden layers, then a linear one. A residual block
appends its input to its output, so that widths grow. The site loads these names into Synthcity's own modules, strictly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medsynx.generators import onnx_model
from medsynx.generators.base import Arrays

Shapes = dict[str, tuple[int, ...]]
MAX_PERIOD = 10_000  #: of the diffusion's time embedding, as in Synthcity


def mlp_shapes(prefix: str, inputs: int, outputs: int, layers: int, hidden: int, *, residual: bool) -> Shapes:
    """Weights of one MLP under ``prefix``."""
    out: Shapes = {}
    width = inputs
    for k in range(layers):
        made = hidden if k == 0 else width
        out[f"{prefix}model.{k}.model.0.weight"], out[f"{prefix}model.{k}.model.0.bias"] = (made, width), (made,)
        width = made + width if residual else made
    out[f"{prefix}model.{layers}.weight"], out[f"{prefix}model.{layers}.bias"] = (outputs, width), (outputs,)
    return out


def linear_shapes(name: str, inputs: int, outputs: int) -> Shapes:
    """Weights of one linear layer."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def shapes(plugin: str, width: int, hidden: int, latent: int, layers: int) -> Shapes:
    """What leaves a site, by name.

    Args:
        width: sum of the dictionary's sizes.
        latent: numbers of noise the generator starts from; unused by ``ddpm``.
    """
    if plugin == "tvae":
        encoder = mlp_shapes("encoder.shared.", width, hidden, layers - 1, hidden, residual=False)
        heads = linear_shapes("encoder.mu_fc", hidden, latent) | linear_shapes("encoder.logvar_fc", hidden, latent)
        return encoder | heads | mlp_shapes("decoder.model.", latent, width, layers, hidden, residual=True)
    if plugin == "ddpm":
        times = linear_shapes("time_emb.fc.0", hidden, hidden) | linear_shapes("time_emb.fc.2", hidden, hidden)
        body = mlp_shapes("model.", hidden, width, layers, hidden, residual=False)
        return linear_shapes("proj", width, hidden) | times | body
    return mlp_shapes("", latent, width, layers, hidden, residual=True)


def initial_weights(named: Shapes, seed: int) -> Arrays:
    """A public draw (He et al. 2015); the last layers small, so that the first rows are nearly uniform. No privacy rests on it."""
    rng = np.random.default_rng(seed)
    last = max((n for n in named if n.endswith(".weight") and "fc" not in n), key=lambda n: list(named).index(n))
    out: Arrays = {}
    for name, shape in named.items():
        if name.endswith("bias"):
            out[name] = np.zeros(shape, np.float32)
        else:
            spread = 0.05 if name == last else (2 / shape[1]) ** 0.5 * (0.3 if "logvar" in name else 1)
            out[name] = rng.normal(0, spread, shape).astype(np.float32)
    return out


def time_table(weights: Arrays, timesteps: int) -> np.ndarray:
    """The denoiser's embedding of every timestep, float32 (timesteps, hidden)."""
    first, second = weights["time_emb.fc.0.weight"], weights["time_emb.fc.2.weight"]
    middle = first.shape[1] // 2
    angle = np.arange(timesteps)[:, None] * np.exp(-np.log(MAX_PERIOD) / middle * np.arange(middle))[None]
    h = np.concatenate([np.cos(angle), np.sin(angle)], axis=1) @ first.T + weights["time_emb.fc.0.bias"]
    table: np.ndarray = h / (1 + np.exp(-h)) @ second.T + weights["time_emb.fc.2.bias"]
    return table.astype(np.float32)


def generator_onnx(weights: Arrays, prefix: str, activation: str, residual: bool) -> bytes:
    """``z`` (rows, latent) to ``logits`` (rows, width)."""
    latent = weights[f"{prefix}model.0.model.0.weight"].shape[1]
    nodes = _mlp_nodes(weights, prefix, "z", activation, residual)
    used = {n: a for n, a in weights.items() if n.startswith(prefix)}
    return onnx_model.build(nodes, used, {"z": (latent, False)})


def denoiser_onnx(weights: Arrays, timesteps: int) -> bytes:
    """``x`` (rows, width) one-hot and ``t`` (rows,) whole numbers to the ``logits`` (rows, width) of the row without noise."""
    from onnx import helper

    nodes = [
        helper.make_node("Gemm", ["x", "proj.weight", "proj.bias"], ["projected"], transB=1),
        helper.make_node("Gather", ["times", "t"], ["time"], axis=0),
        helper.make_node("Add", ["projected", "time"], ["entry"]),
        *_mlp_nodes(weights, "model.", "entry", "Relu", False),
    ]
    used = {n: a for n, a in weights.items() if not n.startswith("time_emb")} | {
        "times": time_table(weights, timesteps)
    }
    return onnx_model.build(nodes, used, {"x": (weights["proj.weight"].shape[1], False), "t": (0, True)})


def _mlp_nodes(weights: Arrays, prefix: str, entry: str, activation: str, residual: bool) -> list[Any]:
    """Nodes of one MLP; its output is called ``logits``."""
    from onnx import helper

    nodes, last = [], entry
    layers = sum(n.startswith(prefix) and n.endswith(".model.0.weight") for n in weights)
    slope: dict[str, Any] = {"alpha": 0.01} if activation == "LeakyRelu" else {}
    for k in range(layers):
        name = f"{prefix}model.{k}.model.0"
        nodes += [
            helper.make_node("Gemm", [last, f"{name}.weight", f"{name}.bias"], [f"linear{k}"], transB=1),
            helper.make_node(activation, [f"linear{k}"], [f"active{k}"], **slope),
        ]
        if residual:
            nodes.append(helper.make_node("Concat", [f"active{k}", last], [f"block{k}"], axis=1))
        last = f"block{k}" if residual else f"active{k}"
    name = f"{prefix}model.{layers}"
    return [*nodes, helper.make_node("Gemm", [last, f"{name}.weight", f"{name}.bias"], ["logits"], transB=1)]
