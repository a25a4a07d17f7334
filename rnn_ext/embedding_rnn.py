"""``EmbeddingRNN``: an embedding and the RNN, GRU or LSTM that reads it, as one module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import functional
from ._core.kinds import kind_of
from ._core.modules import Layers
from .modules import GRU, LSTM, RNN

__all__ = ["EmbeddingRNN"]

_LAYERS: dict[str, Any] = {"rnn": RNN, "gru": GRU, "lstm": LSTM}


class EmbeddingRNN(nn.Module):
    """An embedding followed by an RNN, GRU or LSTM, with less work than the two modules.

    Returns the result of ``rnn(embedding(tokens), hx)``, up to rounding. There are only V different
    tokens, so the first layer computes W_ih E for these and looks up the results; backward sums the
    gradients of equal tokens before it multiplies. :func:`rnn_ext.functional.embedding_rnn` lists
    the calls to which this applies; :func:`rnn_ext.explain` tells for a given call.

    Args:
        num_embeddings: size V of the vocabulary.
        embedding_dim: size E of an embedding, the input size of the first layer.
        hidden_size: number of features H of the state.
        num_layers: number of stacked layers L. Default: 1
        cell: ``'rnn'``, ``'gru'`` or ``'lstm'``. Default: ``'rnn'``
        padding_idx: a token whose embedding starts as zeros and gets no gradient, as in
            :class:`torch.nn.Embedding`. Its ``max_norm``, ``scale_grad_by_freq`` and ``sparse`` are
            not supported. Default: ``None``
        nonlinearity: of an RNN, ``'tanh'`` or ``'relu'``. Default: ``'tanh'``
        bias, batch_first, dropout, bidirectional: as in :class:`rnn_ext.RNN`.
        device, dtype: of the parameters.

    Inputs: tokens, hx
        * **tokens**: int64 or int32 indices, ``(T, B)``, ``(B, T)`` with ``batch_first``, ``(T,)``
          without a batch, or a :class:`~torch.nn.utils.rnn.PackedSequence` of them.
        * **hx**: initial states ``(L·D, B, H)``, or ``(L·D, H)`` without a batch; for an LSTM a
          tuple of two such tensors, h and c. Default: zeros

    Outputs: output, h_n
        * **output**: the last layer's states, shaped like tokens with ``D·H`` features; a
          PackedSequence if tokens are one.
        * **h_n**: final states of every layer and direction, shaped like ``hx``.

    Attributes:
        embedding: the :class:`torch.nn.Embedding`.
        rnn: the :class:`rnn_ext.RNN`, :class:`rnn_ext.GRU` or :class:`rnn_ext.LSTM`. The two
            modules hold the parameters, initialized in this order. Their ``forward`` and their
            hooks are not called, except after :func:`rnn_ext.restore_rnn`.

    Raises:
        ValueError: an argument's shape, dtype, device or value does not fit the others.
        IndexError: a token is not in the vocabulary.

    Example::

        >>> encoder = rnn_ext.EmbeddingRNN(1000, 64, 128, cell="gru")
        >>> output, h_n = encoder(torch.randint(1000, (35, 20)))
        >>> output.shape, h_n.shape
        (torch.Size([35, 20, 128]), torch.Size([1, 20, 128]))
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        cell: str = "rnn",
        padding_idx: int | None = None,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kind_of(cell, nonlinearity)  # checks them
        self.cell = cell
        self.embedding = nn.Embedding(
            num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype
        )
        options = {"nonlinearity": nonlinearity} if cell == "rnn" else {}
        self.rnn = _LAYERS[cell](
            embedding_dim,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
            **options,
        )

    def forward(self, tokens: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """Runs the layers; see the class for the shapes."""
        is_ours = isinstance(self.rnn, Layers)
        if not isinstance(tokens, PackedSequence):
            return self._run(tokens, hx, None) if is_ours else self.rnn(self.embedding(tokens), hx)
        if not is_ours:
            return self.rnn(tokens._replace(data=self.embedding(tokens.data)), hx)
        data, batch_sizes, sorted_indices, unsorted_indices = tokens
        if hx is not None:
            hx = self.rnn.permute_hidden(hx, sorted_indices)
        output, h_n = self._run(data, hx, batch_sizes)
        return (
            PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices),
            self.rnn.permute_hidden(h_n, unsorted_indices),
        )

    def _run(self, tokens: Tensor, hx: Any, batch_sizes: Tensor | None) -> tuple[Tensor, Any]:
        rnn = self.rnn
        return functional.embedding_rnn(
            tokens,
            hx,
            self.embedding.weight,
            [weight for layer in rnn.all_weights for weight in layer],
            cell=self.cell,
            padding_idx=self.embedding.padding_idx,
            nonlinearity=getattr(rnn, "nonlinearity", "tanh"),
            num_layers=rnn.num_layers,
            bias=rnn.bias,
            batch_first=rnn.batch_first,
            dropout=rnn.dropout,
            training=rnn.training,
            bidirectional=rnn.bidirectional,
            batch_sizes=batch_sizes,
        )
