"""OpenVINO, on its CPU plugin, with the ONNX model."""

import openvino
import torch

from .onnx_model import onnx_model
from .runtimes import Prepared, Problem

__all__ = ["prepare"]


def prepare(problem: Problem) -> Prepared:
    """Shares the memory of input and outputs with the caller: the fastest way to call it."""
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": problem.threads,
        "NUM_STREAMS": 1,
        # Otherwise it computes in bfloat16 on CPUs that support it.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(
        core.read_model(onnx_model(problem)), "CPU", settings
    ).create_infer_request()
    request.set_input_tensor(openvino.Tensor(problem.array("input"), shared_memory=True))

    def call() -> None:
        request.infer(share_outputs=True)

    def results() -> dict[str, torch.Tensor]:
        call()
        names = ["output", *problem.states]
        found = {n: torch.tensor(request.get_output_tensor(i).data) for i, n in enumerate(names)}
        return found | {"output": found["output"].squeeze(1)}

    return Prepared(call, results)
