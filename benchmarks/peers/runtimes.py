"""The runtimes, and the interface that prepares a case for each."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor, nn

from rnn_ext.bench.workload import MODES, Mode, Workload

from ..cases import Case
from ..draw import build, draw

__all__ = ["OURS", "RUNTIMES", "Prepared", "Problem", "Runtime"]

OURS = "rnn_ext"


@dataclass(frozen=True)
class Problem:
    """A case with its values, the same in every process; ``module`` has the weights."""

    case: Case
    mode: Mode
    threads: int
    module: nn.Module
    work: Workload

    @classmethod
    def draw(cls, case: Case, mode: Mode, threads: int, device: str = "cpu") -> "Problem":
        """Returns the problem with values drawn from a fixed seed."""
        torch.manual_seed(0)
        module = build(getattr(nn, case.kind), case, mode, device)
        return cls(case, mode, threads, module, draw(case, mode, device))

    @property
    def states(self) -> list[str]:
        """The names of the last states."""
        return ["h_n", "c_n"] if self.case.kind == "LSTM" else ["h_n"]

    def array(self, name: str) -> Any:
        """Returns the NumPy array of a weight, ``"input"`` or ``"grad_output"``."""
        given = {"input": self.work.data, "grad_output": self.work.grad_output}
        tensor = {**given, **self.module.state_dict()}[name]
        assert tensor is not None
        return tensor.detach().numpy()


@dataclass(frozen=True)
class Prepared:
    """The ``call`` to time; ``results`` returns the results of one, with ``Workload``'s names."""

    call: Callable[[], object]
    results: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Runtime:
    """A runtime: ``function`` of ``file`` prepares a ``Problem``; ``packages`` are pip's names."""

    name: str
    file: str
    function: str = "prepare"
    packages: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = MODES
    devices: tuple[str, ...] = ("cpu",)

    def version(self) -> str | None:
        """Returns the first package's version, without importing it; None if one is missing."""
        try:
            first, *_ = [metadata.version(package) for package in self.packages]
        except metadata.PackageNotFoundError:
            return None
        return first

    def load(self) -> Callable[[Problem], Prepared]:
        """Imports the runtime and returns its function."""
        prepare: Callable[[Problem], Prepared] = getattr(
            import_module(f".{self.file}", __package__), self.function
        )
        return prepare


RUNTIMES = (
    Runtime(OURS, "torch_modules", "prepare_ours", devices=("cpu", "cuda")),
    Runtime("torch.nn", "torch_modules", "prepare_torchs", devices=("cpu", "cuda")),
    Runtime("torch.compile", "torch_modules", "prepare_compiled", devices=("cpu", "cuda")),
    Runtime("ONNX Runtime", "onnx_runtime", packages=("onnxruntime", "onnx"), modes=("forward",)),
    Runtime("OpenVINO", "open_vino", packages=("openvino", "onnx"), modes=("forward",)),
    Runtime("JAX", "jax_scan", packages=("jax",)),
)
