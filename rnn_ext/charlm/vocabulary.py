"""Characters to indices and back."""

import unicodedata
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["UNKNOWN", "Vocabulary", "escape_controls"]

UNKNOWN = "<unk>"


class Vocabulary:
    """The distinct characters (Unicode code points) of a text, numbered from 0 in sorted order.

    The numbers depend only on the set of characters, so a seed gives the same model on every run.

    Args:
        text: the characters.
        with_unknown: adds ``<unk>`` at the end, which stands for every other character.

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
        """Returns the indices of the characters of ``text``: int64, shape ``(len(text),)``.

        Raises:
            ValueError: names the characters that are not in the vocabulary, if it has no ``<unk>``.
        """
        indices = [self.char2idx.get(char, self.unknown) for char in text]
        if None in indices:
            missing = sorted(set(text) - self.char2idx.keys())
            raise ValueError(f"not in the vocabulary: {', '.join(map(repr, missing))}")
        return torch.tensor(indices, dtype=torch.int64)

    def decode(self, indices: Iterable[int]) -> str:
        """Returns the text whose characters have these indices (or a 1-D integer tensor)."""
        return "".join(self.idx2char[int(i)] for i in indices)


def escape_controls(text: str) -> str:
    r"""Returns ``text`` with control characters, except ``\n`` and ``\t``, escaped (``\x1b``)."""
    return "".join(
        f"\\x{ord(char):02x}" if unicodedata.category(char) == "Cc" and char not in "\n\t" else char
        for char in text
    )
