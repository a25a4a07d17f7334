"""A case as an ONNX model: the standard operator RNN, with fixed shapes and constant weights."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from .runtimes import Problem

__all__ = ["onnx_model"]


def onnx_model(problem: Problem) -> bytes:
    """Returns the serialized model: ``input`` to ``output`` (T, 1, B, H) and ``h_n``."""
    case = problem.case
    biases = [problem.array(name) for name in ("bias_ih_l0", "bias_hh_l0")]
    constants = {
        "W": problem.array("weight_ih_l0"),
        "R": problem.array("weight_hh_l0"),
        "B": np.concatenate(biases),
    }
    state = (1, case.batch_size, case.hidden_size)
    shapes = {
        "input": (case.seq_len, case.batch_size, case.input_size),
        "output": (case.seq_len, *state),
        "h_n": state,
    }
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    }
    graph = helper.make_graph(
        [
            helper.make_node(
                "RNN", ["input", *constants], ["output", "h_n"], hidden_size=case.hidden_size
            )
        ],
        "rnn",
        [values["input"]],
        [values["output"], values["h_n"]],
        # The leading 1 is the number of directions.
        [numpy_helper.from_array(value[None], name) for name, value in constants.items()],
    )
    # Versions that all recent releases of onnxruntime and OpenVINO read.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized
