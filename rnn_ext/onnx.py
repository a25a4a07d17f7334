"""Exports a layer as the ONNX operator ``RNN``, for ``torch.onnx.export(..., dynamo=True)``.

To export a model, nothing from this module is needed: its layers add the operator to the graph. An
existing :class:`~torch.export.ExportedProgram` contains this package's op instead; pass
:func:`translation_table` to export it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["rnn_layer", "translation_table"]


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
            raise NotImplementedError(
                "ONNX has no packed sequences: export a model that gives its rnn_ext layers padded "
                "input"
            )
        stacked = [
            op.Concat(*(op.Unsqueeze(w, [0]) for w in group), axis=0)
            for group in _by_parameter(weights, bidirectional)
        ]
        w_ih, w_hh, *biases = stacked
        bias = op.Concat(*biases, axis=1) if biases else None
        attributes = _attributes(nonlinearity, bidirectional, weights[1].shape[0])
        output, h_n = op.RNN(input, w_ih, w_hh, bias, None, hx, **attributes)
        # (T, D, B, H) to (T, B, D·H); zeros are sizes to keep.
        return op.Reshape(op.Transpose(output, perm=[0, 2, 1, 3]), [0, 0, -1]), h_n

    return {torch.ops.rnn_ext.rnn_forward.default: rnn_forward}


def rnn_layer(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    nonlinearity: str,
    bidirectional: bool,
) -> tuple[Tensor, Tensor]:
    """Adds the operator for ``torch.ops.rnn_ext.rnn_forward`` to the graph; never packed."""
    assert batch_sizes is None
    w_ih, w_hh, *biases = (torch.stack(group) for group in _by_parameter(weights, bidirectional))
    steps, batch = input.shape[:2]
    directions, hidden_size, _ = w_hh.shape
    output, h_n = torch.onnx.ops.symbolic_multi_out(
        "RNN",
        [input, w_ih, w_hh, torch.cat(biases, 1) if biases else None, None, hx],
        _attributes(nonlinearity, bidirectional, hidden_size),
        dtypes=(input.dtype, input.dtype),
        shapes=((steps, directions, batch, hidden_size), (directions, batch, hidden_size)),
        version=14,  # the oldest with this definition
    )
    return output.transpose(1, 2).flatten(2), h_n


def _by_parameter(weights: Sequence[Any], bidirectional: bool) -> list[list[Any]]:
    """Regroups ``weights``, given per direction: all ``weight_ih``, all ``weight_hh`` and so on."""
    count = len(weights) // 2 if bidirectional else len(weights)
    return [list(weights[index::count]) for index in range(count)]


def _attributes(nonlinearity: str, bidirectional: bool, hidden_size: int) -> dict[str, Any]:
    return {
        "activations": [nonlinearity.capitalize()] * (2 if bidirectional else 1),
        "direction": "bidirectional" if bidirectional else "forward",
        "hidden_size": hidden_size,
    }
