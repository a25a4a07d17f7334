"""Fast recurrent networks for PyTorch: drop-ins for ``torch.nn.RNN``, ``GRU`` and ``LSTM``."""

import signal
import sys

# `python -m rnn_ext` runs this file before `__main__`. Importing torch takes a second or more;
# meanwhile Ctrl-C must end the process without a traceback, as in `rnn_ext_command`.
_handler = signal.getsignal(signal.SIGINT) if sys.argv[:1] == ["-m"] else None
if _handler is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from . import _extension  # noqa: E402

_C = _extension.load()

# Importing flops and ops registers formulas, fake kernels and autograd.
from . import cells, functional, onnx, parametrizations  # noqa: E402
from ._core import flops, ops  # noqa: E402, F401
from ._core.cells.cell import Cell, cell  # noqa: E402
from ._core.cells.errors import CellError  # noqa: E402
from .ctrnn import CTRNN  # noqa: E402
from .embedding_rnn import EmbeddingRNN  # noqa: E402
from .frozen import freeze  # noqa: E402
from .info import build_info, explain, keep_freed_memory, release_scratch, uses_openmp  # noqa: E402
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell  # noqa: E402
from .recurrent import Recurrent, RecurrentCell  # noqa: E402
from .swap import replace_rnn, restore_rnn  # noqa: E402

__all__ = [
    "CTRNN",
    "GRU",
    "LSTM",
    "RNN",
    "Cell",
    "CellError",
    "EmbeddingRNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Recurrent",
    "RecurrentCell",
    "__version__",
    "build_info",
    "cell",
    "cells",
    "explain",
    "freeze",
    "functional",
    "keep_freed_memory",
    "onnx",
    "parametrizations",
    "release_scratch",
    "replace_rnn",
    "restore_rnn",
]

__version__: str = _C.build_info()["version"]

# A team of threads meets at barriers, so its members must run at the same time.
_C.set_pool_is_concurrent(uses_openmp())

if _handler is signal.default_int_handler:
    signal.signal(signal.SIGINT, _handler)
