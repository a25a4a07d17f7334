"""Exports layers as ONNX's operators, for ``torch.onnx.export(dynamo=True)``.

A model needs nothing from this module: its layers add the operators ``RNN``, ``GRU`` or ``LSTM`` to
the graph, and those of any other cell add a ``Scan`` whose body is the cell's program. An existing
:class:`~torch.export.ExportedProgram` contains this package's op instead; pass
:func:`translation_table` to export it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ._core.onnx import NO_PACKED, attributes, by_parameter

__all__ = ["translation_table"]


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Returns the translations of our ops that ``torch.onnx.export`` needs for ExportedPrograms.

    Raises:
        ModuleNotFoundError: the package ``onnxscript`` is not installed (extra ``onnx``).

    Example::

        >>> program = torch.export.export(model, (x,))
        >>> table = rnn_ext.onnx.translation_table()
        >>> exported = torch.onnx.export(program, custom_translation_table=table, verbose=False)
        >>> exported.save("model.onnx")
    """
    from onnxscript import opset18 as op

    def rnn_forward(
        input: Any,
        hx: Any,
        weights: Sequence[Any],
        batch_sizes: Any,
        nonlinearity: str,
        bidirectional: bool,
    ) -> tuple[Any, Any]:
        if batch_sizes is not None:
            raise NotImplementedError(NO_PACKED)
        stacked = [
            op.Concat(*(op.Unsqueeze(w, [0]) for w in group), axis=0)
            for group in by_parameter(weights, bidirectional)
        ]
        w_ih, w_hh, *biases = stacked
        bias = op.Concat(*biases, axis=1) if biases else None
        output, h_n = op.RNN(
            *(input, w_ih, w_hh, bias, None, hx),
            activations=[nonlinearity.capitalize()] * (2 if bidirectional else 1),
            **attributes(bidirectional, weights[1].shape[0]),
        )
        # (T, D, B, H) to (T, B, D·H); zeros are sizes to keep.
        return op.Reshape(op.Transpose(output, perm=[0, 2, 1, 3]), [0, 0, -1]), h_n

    def recurrence_forward(*_: Any) -> Any:
        raise NotImplementedError(
            "an ExportedProgram contains GRU, LSTM and other cells as programs, for which ONNX has "
            "no operator: export the model itself, whose layers become operators"
        )

    return {
        torch.ops.rnn_ext.rnn_forward.default: rnn_forward,
        torch.ops.rnn_ext.recurrence_forward.default: recurrence_forward,
    }
