"""An ONNX model from nodes and weights, so that the coordinator needs no torch to export a generator."""

from __future__ import annotations

from typing import Any

import numpy as np

from medsynx.generators.base import Arrays


def build(nodes: list[Any], weights: Arrays, inputs: dict[str, tuple[int, bool]], width: int | None = None) -> bytes:
    """The checked model (opset 17) whose one output is called ``logits``, shape (rows, width).

    Args:
        inputs: name -> (width, whole numbers); width 0 is a vector.
        width: of the output; unsaid when omitted.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    entries = [
        helper.make_tensor_value_info(
            n, TensorProto.INT64 if whole else TensorProto.FLOAT, ["rows", wide] if wide else ["rows"]
        )
        for n, (wide, whole) in inputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "generator",
        entries,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", width])],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="medsynx")
    model.ir_version = 9
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
