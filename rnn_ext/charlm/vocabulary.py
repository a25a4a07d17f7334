"""Characters to indices and back."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["UNKNOWN", "Vocabulary"]

UNKNOWN = "<unk>"


class Vocabulary:
    """The distinct characters (Unicode code points) of a text, numbered from 0 in sorted order.

    The numbering depends on which characters occur and on nothing else, so that a seed gives the
    same model on every run.

    Args:
        text: the characters.
        with_unknown: adds ``<unk>`` at the end, for characters of a corpus that are too rare to
            learn. Text to :meth:`encode` cannot have it.

    Attributes:
        idx2char: the characters; ``idx2char[i]`` is the one with index ``i``.
        char2idx: the index of each character.
        unknown: the index of ``<unk>``, or None.
    """

    def __init__(self, text: Iterable[str], *, with_unknown: bool = False) -> None:
        characters = sorted(set(text))
        self.char2idx: dict[str, int] = {char: i for i, char in enumerate(characters)}
        self.unknown = len(characters) if with_unknown else None
        self.idx2char: tuple[str, ...] = (*characters, *[UNKNOWN] * with_unknown)

    def __len__(self) -> int:
        return len(self.idx2char)

    def __repr__(self) -> str:
        unknown = ", with_unknown=True" if self.unknown is not None else ""
        return f"{type(self).__name__}({''.join(self.char2idx)!r}{unknown})"

    def encode(self, text: str) -> Tensor:
        """Indices of the characters of ``text``: int64, shape ``(len(text),)``.

        Raises:
            ValueError: names the characters of ``text`` that the vocabulary lacks.
        """
        unknown = sorted(set(text) - self.char2idx.keys())
        if unknown:
            raise ValueError(f"not in the vocabulary: {', '.join(map(repr, unknown))}")
        return torch.tensor([self.char2idx[char] for char in text], dtype=torch.int64)

    def decode(self, indices: Iterable[int]) -> str:
        """The text whose characters have these indices (a 1-D integer tensor will do as well)."""
        return "".join(self.idx2char[int(i)] for i in indices)
