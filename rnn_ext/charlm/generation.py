"""Text from a trained model, character by character."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .model import CharRNN
from .vocabulary import Vocabulary

__all__ = ["generate"]


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
    tokens = vocabulary.encode(prompt).unsqueeze(1)
    draws = torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    indices = _continue(model, tokens, draws, vocabulary.unknown, temperature, top_k)
    return map(vocabulary.idx2char.__getitem__, indices)


@torch.inference_mode()
def _continue(
    model: CharRNN,
    tokens: Tensor,
    draws: Tensor,
    never: int | None,
    temperature: float,
    top_k: int | None,
) -> Iterator[int]:
    """One index for each of ``draws``, none of them ``never``, after the prompt ``(T, 1)``."""
    hidden: Tensor | None = None
    for draw in draws.tolist():
        logits, hidden = model(tokens.to(model.linear.weight.device), hidden)
        scores = logits[-1, 0].double()
        if never is not None:
            scores[never] = -torch.inf
        tokens = _choose(scores, draw, temperature, top_k).view(1, 1)
        yield int(tokens)


def _choose(scores: Tensor, draw: float, temperature: float, top_k: int | None) -> Tensor:
    """The index that ``draw``, from [0, 1), falls on."""
    if temperature == 0:
        return scores.argmax()
    if top_k is not None and top_k < len(scores):
        scores = scores.where(scores >= scores.topk(top_k).values[-1], -torch.inf)
    weights = ((scores - scores.max()) / temperature).exp()
    sums = weights.cumsum(0)
    # Where rounding takes the product up to the sum, the last of any weight.
    return torch.minimum((sums <= draw * sums[-1]).sum(), weights.nonzero().max())
