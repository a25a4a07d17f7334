"""Turns text files into a vocabulary and a file of tokens, without holding a text in memory.

A first pass over the files counts every character, a second one writes the index of each. The file
of tokens contains only these indices, one byte each if the vocabulary has at most 256 characters.
Training maps the file into memory, so the system reads parts of it on demand.
"""

import codecs
import hashlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from .errors import CharLMError
from .files import new_file, temporary_path, with_name
from .vocabulary import Vocabulary

__all__ = ["STDIN", "Tokens", "prepare", "restore"]

STDIN = "-"

_MIN_CHARACTERS = 4  # two to train on and two to validate on

_CODE_POINTS = 0x110000
_CHUNK = 1 << 20  # bytes
_DTYPES = {"uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32}
# UTF-32 comes before UTF-16: its little-endian mark starts with UTF-16's.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Tokens:
    """Identifies a file of tokens.

    Attributes:
        count: number of characters.
        dtype: of an index: ``"uint8"``, ``"int16"`` or ``"int32"``.
        sha256: hexadecimal digest of the file.
    """

    count: int
    dtype: str
    sha256: str

    def fit(self, path: Path) -> bool:
        """Whether ``path`` exists and has the right size."""
        return path.is_file() and path.stat().st_size == self.count * _DTYPES[self.dtype].itemsize

    def map(self, path: Path) -> Tensor:
        """Maps the file into memory and returns the tokens, shape ``(count,)``.

        Raises:
            CharLMError: ``path`` is missing or has other content.
        """
        tokens = None
        if self.fit(path):
            dtype = _DTYPES[self.dtype]
            tokens = torch.from_file(str(path), shared=False, size=self.count, dtype=dtype)
        if tokens is None or hashlib.sha256(tokens.numpy().data).hexdigest() != self.sha256:
            raise CharLMError(
                f"{path} has changed since the run started; remove it and resume, which recreates "
                "it from the text"
            )
        return tokens


class _Source(NamedTuple):
    """A text that can be read twice, with its name for messages."""

    path: Path
    name: str


def prepare(
    corpus: Sequence[str], path: Path, min_count: int, encoding: str
) -> tuple[Vocabulary, Tokens]:
    """Writes the characters of all texts in ``corpus``, one after the other, to ``path``.

    Args:
        corpus: text files; ``"-"`` is standard input. Pipes, which can be read only once, are
            copied to temporary files in the folder of ``path``.
        path: the file of tokens, in an existing folder.
        min_count: characters that occur less often become ``<unk>``.
        encoding: name of an encoding. A byte order mark overrides ``"utf-8"``.

    Raises:
        CharLMError: a file is not text, is empty, or changes while it is read; or all files
            together have too few characters.
        OSError: a file cannot be read or written.
    """
    with _readable(corpus, path) as sources:
        counts = _count(sources, encoding)
        total = int(counts.sum())
        if total < _MIN_CHARACTERS:
            raise CharLMError(
                f"the text has {total} characters, and at least {_MIN_CHARACTERS} are needed"
            )
        frequent = counts >= min_count
        if not frequent.any():
            raise CharLMError(
                f"no character occurs {min_count} times; choose a smaller minimum count"
            )
        vocabulary = Vocabulary(
            map(chr, frequent.nonzero().flatten().tolist()),
            with_unknown=bool((counts > 0).logical_and(~frequent).any()),
        )
        changed = "a text changed while it was read; start again"
        with new_file(path) as file:
            tokens = _write(sources, file, vocabulary, encoding, changed)
            if tokens.count != total:
                raise CharLMError(changed)
        return vocabulary, tokens


def restore(
    corpus: Sequence[str], path: Path, vocabulary: Vocabulary, tokens: Tokens, encoding: str
) -> None:
    """Writes the file of tokens again, as :func:`prepare` did.

    Raises:
        CharLMError: the texts have changed since.
        OSError: a file cannot be read or written.
    """
    changed = (
        f"{path} is missing or damaged, and the text has changed since the run started, so it "
        "cannot be recreated; restore the text, or train in another folder"
    )
    if any(name == STDIN or not Path(name).is_file() for name in corpus):
        raise CharLMError(changed)
    with _readable(corpus, path) as sources, new_file(path) as file:
        if _write(sources, file, vocabulary, encoding, changed) != tokens:
            raise CharLMError(changed)


@contextmanager
def _readable(corpus: Sequence[str], path: Path) -> Iterator[list[_Source]]:
    """Yields the texts as regular files, copying those that can be read only once."""
    with ExitStack() as stack:
        sources = []
        for number, name in enumerate(corpus):
            source = Path(name)
            if name != STDIN and not source.is_fifo():
                if source.exists() and not source.is_file():
                    raise CharLMError(f"{name} is not a file; pass text files to learn from")
                sources.append(_Source(source, name))
                continue
            copy = temporary_path(path.with_name(f"text-{number}"))
            stack.callback(copy.unlink, missing_ok=True)
            with with_name(copy), copy.open("wb") as file:
                if name != STDIN:
                    with source.open("rb") as pipe:
                        shutil.copyfileobj(pipe, file)
                elif sys.stdin is not None:  # None where the shell closed it
                    shutil.copyfileobj(sys.stdin.buffer, file)
            sources.append(_Source(copy, "standard input" if name == STDIN else name))
        yield sources


def _count(sources: Sequence[_Source], encoding: str) -> Tensor:
    """Returns how often each code point occurs."""
    counts = torch.zeros(_CODE_POINTS, dtype=torch.int64)
    for source in sources:
        before = int(counts.sum())
        for codes in _code_points(source, encoding):
            counts += torch.bincount(codes, minlength=_CODE_POINTS)
        if counts.sum() == before:
            raise CharLMError(f"{source.name} is empty; pass text files to learn from")
    return counts


def _write(
    sources: Sequence[_Source], file: BinaryIO, vocabulary: Vocabulary, encoding: str, changed: str
) -> Tokens:
    """Writes the tokens of all texts.

    Raises:
        CharLMError: with the message ``changed``: a character is not in the vocabulary.
    """
    dtype = next(d for d in _DTYPES if len(vocabulary) <= torch.iinfo(_DTYPES[d]).max + 1)
    unknown = -1 if vocabulary.unknown is None else vocabulary.unknown
    index = torch.full((_CODE_POINTS,), unknown, dtype=torch.int32)
    index[[ord(char) for char in vocabulary.char2idx]] = torch.arange(
        len(vocabulary.char2idx), dtype=torch.int32
    )
    count, digest = 0, hashlib.sha256()
    for source in sources:
        for codes in _code_points(source, encoding):
            tokens = index[codes]
            if tokens.min() < 0:
                raise CharLMError(changed)
            data = tokens.to(_DTYPES[dtype]).numpy().data
            file.write(data)
            digest.update(data)
            count += len(tokens)
    return Tokens(count, dtype, digest.hexdigest())


def _code_points(source: _Source, encoding: str) -> Iterator[Tensor]:
    """Yields the code points of a text in chunks; line ends are not translated."""
    with source.path.open("rb") as file:
        decoder = codecs.getincrementaldecoder(_detect(file.read(4), encoding))()
        file.seek(0)
        size = lines = 0
        data = b"."
        while data:
            data = file.read(_CHUNK)
            size += len(data)
            try:
                text = decoder.decode(data, final=not data)
                codes = bytearray(text.encode("utf-32-le"))
            except UnicodeError as error:
                raise CharLMError(_describe(error, source.name, encoding, size, lines)) from None
            if "\0" in text:
                raise CharLMError(
                    f"{source.name} contains zero bytes, so it is not a text file; pass another"
                )
            lines += text.count("\n")
            if text:
                yield torch.frombuffer(codes, dtype=torch.int32)


def _detect(start: bytes, encoding: str) -> str:
    """Returns the encoding of a text that begins with ``start``."""
    try:
        "".encode(encoding)
    except LookupError:
        raise CharLMError(
            f"{encoding!r} is not the name of a text encoding, such as utf-8, utf-16, latin-1, "
            "cp1252 or gb18030"
        ) from None
    if codecs.lookup(encoding).name == "utf-8":
        for mark, marked in _BYTE_ORDER_MARKS.items():
            if start.startswith(mark):
                return marked
    return encoding


def _describe(error: UnicodeError, name: str, encoding: str, size: int, lines: int) -> str:
    """Returns the message for a decoding error.

    Args:
        size: bytes of the text that were read.
        lines: complete lines before the last chunk.
    """
    place = ""
    if isinstance(error, UnicodeDecodeError):
        offset = size - len(error.object) + error.start
        line = lines + error.object[: error.start].count(b"\n") + 1
        place = f": byte 0x{error.object[error.start]:02x} at offset {offset}, in line {line}"
    return f"{name} is not {encoding.upper()} text{place}; specify its encoding"
