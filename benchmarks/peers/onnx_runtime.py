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
    for name in ("output", *problem.states):
        binding.bind_output(name)

    def call() -> None:
        session.run_with_iobinding(binding)

    def results() -> dict[str, torch.Tensor]:
        call()
        output, *states = map(torch.from_numpy, binding.copy_outputs_to_cpu())
        return {"output": output.squeeze(1), **dict(zip(problem.states, states, strict=True))}

    return Prepared(call, results)
