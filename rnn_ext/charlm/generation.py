"""Text from a trained model, character by character."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .. import RNN
from .model import CharRNN
from .token_rnn import projections
from .vocabulary import Vocabulary

__all__ = ["generate"]

# Characters that one call of the fused op generates.
_FIRST = 32
_MOST = 1024


def generate(
    model: CharRNN,
    vocabulary: Vocabulary,
    prompt: str,
    length: int = 200,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Continue ``prompt`` by ``length`` characters, which are yielded as they come.

    Args:
        model: put into eval mode by the caller, where it has dropout.
        vocabulary: that it was trained with. ``<unk>`` is never generated.
        prompt: at least one character.
        length: how many more to generate.
        temperature: 0 takes the likeliest character every time; 1 draws from the model's
            distribution; in between, likely ones are drawn more often than that.
        top_k: draw from the likeliest ``top_k`` characters only.
        seed: of the draws.

    Raises:
        ValueError: the prompt is empty, or has characters that the vocabulary lacks.
    """
    if not prompt:
        raise ValueError("the prompt is empty; give at least one character to go on from")
    tokens = vocabulary.encode(prompt)
    draws = torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    sampling = Sampling(temperature, top_k, vocabulary.unknown)
    write = _write_fused if _can_fuse(model) else _write
    indices = chain.from_iterable(write(model, tokens, draws, sampling))
    return map(vocabulary.idx2char.__getitem__, indices)


@dataclass(frozen=True)
class Sampling:
    """How a character is drawn: see :func:`generate`; ``never`` is not."""

    temperature: float
    top_k: int | None
    never: int | None

    def choose(self, scores: Tensor, draw: float) -> int:
        """The index among ``scores``, float64, that ``draw``, from [0, 1), falls on."""
        if self.never is not None:
            scores[self.never] = -torch.inf
        if self.temperature == 0:
            return int(scores.argmax())
        if self.top_k is not None and self.top_k < len(scores):
            scores = scores.where(scores >= scores.topk(self.top_k).values[-1], -torch.inf)
        weights = ((scores - scores.max()) / self.temperature).exp()
        sums = weights.cumsum(0)
        # Where rounding takes the product up to the sum, the last of any weight.
        return min(int((sums <= draw * sums[-1]).sum()), int(weights.nonzero().max()))


@torch.inference_mode()
def _write(
    model: CharRNN, prompt: Tensor, draws: Tensor, sampling: Sampling
) -> Iterator[list[int]]:
    """An index for each of ``draws``, one by one, by the model as it stands."""
    device = model.linear.weight.device
    tokens, hidden = prompt.unsqueeze(1), None
    for draw in draws.tolist():
        logits, hidden = model(tokens.to(device), hidden)
        index = sampling.choose(logits[-1, 0].double().cpu(), draw)
        yield [index]
        tokens = torch.tensor([[index]])


def _can_fuse(model: CharRNN) -> bool:
    weight = model.linear.weight
    return (
        type(model.rnn) is RNN
        and weight.is_cpu
        and weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


@torch.inference_mode()
def _write_fused(
    model: CharRNN, prompt: Tensor, draws: Tensor, sampling: Sampling
) -> Iterator[list[int]]:
    """The same by one op for many characters: few at first, since they are waited for, then more
    and more, since the op packs all weights anew."""
    first, *others = model.rnn.all_weights
    weights = [first[1], *(w for ih, hh, *biases in others for w in (ih, hh, sum(biases)))]
    fixed = (weights, model.linear.weight, model.linear.bias)
    top_k = len(model.linear.bias) if sampling.top_k is None else sampling.top_k
    never = -1 if sampling.never is None else sampling.never
    table = projections(model.embedding, first)
    hidden = table.new_zeros(model.rnn.num_layers, 1, model.rnn.hidden_size)
    tokens, done, count = prompt, 0, _FIRST
    while done < len(draws):
        tokens, hidden = torch.ops.rnn_ext._rnn_generate(
            *(tokens, draws[done : done + count], table, hidden, *fixed),
            *(sampling.temperature, top_k, never, model.rnn.nonlinearity),
        )
        yield tokens.tolist()
        tokens, done, count = tokens[-1:], done + count, min(2 * count, _MOST)


@torch.library.register_fake("rnn_ext::_rnn_generate")
def _(prompt: Tensor, draws: Tensor, table: Tensor, hidden: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return prompt.new_empty(draws.shape), hidden.new_empty(hidden.shape)
