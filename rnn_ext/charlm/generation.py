"""Generates text with a trained model, character by character."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from .. import RNN, functional
from .model import CharRNN
from .vocabulary import Vocabulary

__all__ = ["generate"]

# Characters that a call of the fused op generates: few at first, so that the text starts at once.
_FIRST_CHUNK = 32
_LARGEST_CHUNK = 1024


def generate(
    model: CharRNN,
    vocabulary: Vocabulary,
    prompt: str = "",
    length: int = 200,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> Iterator[str]:
    """Continues ``prompt`` by ``length`` characters and yields them one at a time.

    Args:
        model: in eval mode, if it has dropout.
        vocabulary: the one that the model was trained with. ``<unk>`` is never generated.
        prompt: text to continue. If empty, the text starts a line: the model first reads a line
            feed (or, without one in the vocabulary, its first character), which is not yielded.
        length: number of characters to generate.
        temperature: 0 always takes the most likely character; 1 draws from the model's
            distribution; values between 0 and 1 prefer likely characters.
        top_k: draw only from the ``top_k`` most likely characters.
        seed: seed of the draws.

    Raises:
        ValueError: a character of the prompt is not in the vocabulary, which has no ``<unk>``.
    """
    if not prompt:
        prompt = "\n" if "\n" in vocabulary.char2idx else vocabulary.idx2char[0]
    tokens = vocabulary.encode(prompt)
    sampling = Sampling(temperature, top_k, vocabulary.unknown)
    write = _write_fused if _can_fuse(model) else _write
    indices = chain.from_iterable(write(model, tokens, _draws(length, seed), sampling))
    return map(vocabulary.idx2char.__getitem__, indices)


@dataclass(frozen=True)
class Sampling:
    """The arguments of :func:`generate` that select a character; ``never`` is not drawn."""

    temperature: float
    top_k: int | None
    never: int | None

    def choose(self, scores: Tensor, draw: float) -> int:
        """Returns the index that ``draw``, in [0, 1), selects by ``scores``, float64 ``(V,)``."""
        if self.never is not None:
            scores[self.never] = -torch.inf
        if self.temperature == 0:
            return int(scores.argmax())
        if self.top_k is not None and self.top_k < len(scores):
            scores = scores.where(scores >= scores.topk(self.top_k).values[-1], -torch.inf)
        weights = ((scores - scores.max()) / self.temperature).exp()
        sums = weights.cumsum(0)
        # If the product rounds up to the sum, take the last index with a weight.
        return min(int((sums <= draw * sums[-1]).sum()), int(weights.nonzero().max()))


def _draws(length: int, seed: int) -> Iterator[Tensor]:
    """Yields ``length`` random numbers in [0, 1), in tensors of growing size."""
    generator = torch.Generator().manual_seed(seed)
    count = _FIRST_CHUNK
    while length > 0:
        yield torch.rand(min(count, length), generator=generator, dtype=torch.float64)
        length -= count
        count = min(2 * count, _LARGEST_CHUNK)


@torch.inference_mode()
def _write(
    model: CharRNN, prompt: Tensor, draws: Iterator[Tensor], sampling: Sampling
) -> Iterator[list[int]]:
    """Yields an index for each number of ``draws``, with one call of the model for each."""
    device = model.linear.weight.device
    tokens, hidden = prompt.unsqueeze(1), None
    for draw in chain.from_iterable(part.tolist() for part in draws):
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
    model: CharRNN, prompt: Tensor, draws: Iterator[Tensor], sampling: Sampling
) -> Iterator[list[int]]:
    """Yields the same as ``_write``, with one call of the fused op for each tensor of ``draws``."""
    tokens, hidden = prompt, None
    for part in draws:
        tokens, hidden = functional.embedding_rnn_generate(
            tokens,
            part,
            hidden,
            model.embedding.weight,
            [weight for layer in model.rnn.all_weights for weight in layer],
            model.linear.weight,
            model.linear.bias,
            nonlinearity=str(model.rnn.nonlinearity),
            num_layers=model.rnn.num_layers,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            never=sampling.never,
        )
        yield tokens.tolist()
        tokens = tokens[-1:]
