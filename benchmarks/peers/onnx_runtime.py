"""ONNX Runtime, on its CPU provider."""

import onnxruntime
import torch

from .onnx_model import onnx_model
from .runtimes import Prepared, Problem

__all__ = ["prepare"]


def prepare(problem: Problem) -> Prepared:
    """Binds input and outputs once, which saves some microseconds a call over ``run``."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem.threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        onnx_model(problem), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    binding.bind_cpu_input("input", problem.array("input"))
    binding.bind_output("output")
    binding.bind_output("h_n")

    def call() -> None:
        session.run_with_iobinding(binding)

    def results() -> dict[str, torch.Tensor]:
        call()
        output, h_n = map(torch.from_numpy, binding.copy_outputs_to_cpu())
        return {"output": output.squeeze(1), "h_n": h_n}

    return Prepared(call, results)
