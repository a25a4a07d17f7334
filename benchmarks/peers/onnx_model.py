"""A case as an ONNX model: one standard operator, with fixed shapes and constant weights."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from .runtimes import Problem

__all__ = ["onnx_model"]


# The order of torch's gates in ONNX.
GATES = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}


def onnx_model(problem: Problem) -> bytes:
    """Returns the serialized model: ``input`` to ``output`` (T, 1, B, H) and the last states."""
    case = problem.case

    def in_order(name: str) -> Any:
        gates = np.split(problem.array(name), len(GATES[case.kind]))
        return np.concatenate([gates[i] for i in GATES[case.kind]])

    constants = {
        "W": in_order("weight_ih_l0"),
        "R": in_order("weight_hh_l0"),
        "B": np.concatenate([in_order("bias_ih_l0"), in_order("bias_hh_l0")]),
    }
    state = (1, case.batch_size, case.hidden_size)
    outputs = {"output": (case.seq_len, *state), **dict.fromkeys(problem.states, state)}
    shapes = {"input": (case.seq_len, case.batch_size, case.input_size), **outputs}
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    }
    # torch's reset gate multiplies the product, not the state.
    attributes = {"linear_before_reset": 1} if case.kind == "GRU" else {}
    operands = ["input", *constants], list(outputs)
    graph = helper.make_graph(
        [helper.make_node(case.kind, *operands, hidden_size=case.hidden_size, **attributes)],
        "layer",
        [values["input"]],
        [values[name] for name in outputs],
        # The leading 1 is the number of directions.
        [numpy_helper.from_array(value[None], name) for name, value in constants.items()],
    )
    # Versions that all recent releases of onnxruntime and OpenVINO read.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized
