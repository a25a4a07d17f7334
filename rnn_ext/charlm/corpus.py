"""Text files → vocabulary and a file of tokens, without ever holding a text in memory.

Two passes over the files: the first counts every character, the second writes each as its index.
The file of tokens holds nothing else, one byte a character where 256 indices are enough. Mapped
into memory, it is read where training asks for it, and the system may drop it again.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .files import new_file
from .vocabulary import Vocabulary

__all__ = ["Tokens", "prepare"]

_LEAST = 4  # characters: two to learn from and two to validate on

_CODE_POINTS = 0x110000
_CHUNK = 1 << 20  # characters
_DTYPES = {"uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32}


@dataclass(frozen=True)
class Tokens:
    """What is known of a file of tokens: enough to see that it is the one meant."""

    count: int
    dtype: str
    sha256: str

    def map(self, path: Path) -> Tensor:
        """The tokens, shape ``(count,)``, read from disk where they are used.

        Raises:
            UserError: ``path`` is not the file that these facts were taken from.
        """
        try:
            tokens = _map(path, self.count, self.dtype)
        except RuntimeError:  # none there, or too short a one
            tokens = None
        if tokens is None or _digest(tokens) != self.sha256:
            raise UserError(
                f"{path} is missing or not the one that the run began with; "
                "put it back, or train anew in another folder"
            )
        return tokens


def prepare(corpus: Sequence[Path], path: Path, min_count: int) -> tuple[Vocabulary, Tokens]:
    """Write the characters of all files in ``corpus``, one after the other, to ``path``.

    Args:
        corpus: UTF-8 text files.
        path: of the file of tokens; its folder is made where there is none.
        min_count: characters that occur less often become ``<unk>``.

    Raises:
        UserError: a file is no text or empty, or changes meanwhile; or all of them together have
            too few characters.
        OSError: a file cannot be read or written.
    """
    counts = _count(corpus)
    if counts.sum() < _LEAST:
        raise UserError(f"the text has {int(counts.sum())} characters, and {_LEAST} are the least")
    frequent = counts >= min_count
    if not frequent.any():
        raise UserError(f"no character occurs {min_count} times; choose a smaller --min-count")
    vocabulary = Vocabulary(
        map(chr, frequent.nonzero().flatten().tolist()),
        with_unknown=bool((counts > 0).logical_and(~frequent).any()),
    )
    dtype = next(d for d in _DTYPES if len(vocabulary) <= torch.iinfo(_DTYPES[d]).max + 1)
    index = torch.full((_CODE_POINTS,), vocabulary.unknown or 0, dtype=_DTYPES[dtype])
    index[frequent] = torch.arange(int(frequent.sum()), dtype=_DTYPES[dtype])
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as file:
        for codes in _code_points(corpus):
            file.write(index[codes].numpy().data)
            count += len(codes)
    if count != counts.sum():
        raise UserError("a text changed while it was read; start again")
    return vocabulary, Tokens(count, dtype, _digest(_map(path, count, dtype)))


def _count(corpus: Sequence[Path]) -> Tensor:
    """How often each code point occurs."""
    counts = torch.zeros(_CODE_POINTS, dtype=torch.int64)
    for path in corpus:
        before = int(counts.sum())
        for codes in _code_points([path]):
            counts += torch.bincount(codes, minlength=_CODE_POINTS)
        if counts.sum() == before:
            raise UserError(f"{path} is empty; name text files to learn from")
    return counts


def _code_points(corpus: Sequence[Path]) -> Iterator[Tensor]:
    """The code points of the texts, some at a time."""
    for path in corpus:
        if path.exists() and not path.is_file():  # what is no file may not say the same twice
            raise UserError(f"{path} is not a file; name text files to learn from")
        # Line ends stay as they are; a byte order mark is no part of the text.
        with path.open(encoding="utf-8-sig", newline="") as file:
            try:
                while text := file.read(_CHUNK):
                    codes = torch.frombuffer(bytearray(text.encode("utf-32-le")), dtype=torch.int32)
                    if "\0" in text:
                        raise UserError(f"{path} holds zero bytes, so it is no text; name another")
                    yield codes
            except UnicodeDecodeError:
                raise UserError(
                    f"{path} is not UTF-8 text; convert it, as with iconv, or name another file"
                ) from None


def _map(path: Path, count: int, dtype: str) -> Tensor:
    return torch.from_file(str(path), shared=False, size=count, dtype=_DTYPES[dtype])


def _digest(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.numpy().data).hexdigest()
