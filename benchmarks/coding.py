"""Converts dataclasses and structs, with the dtypes in them, to JSON and back."""

from typing import Any

import msgspec
import torch

__all__ = ["decode", "encode"]


def encode(value: Any) -> bytes:
    """Returns ``value`` as JSON."""
    return msgspec.json.encode(value, enc_hook=lambda dtype: str(dtype).removeprefix("torch."))


def decode(text: str | bytes, kind: Any) -> Any:
    """Inverts ``encode``; raises ``msgspec.ValidationError`` if ``text`` is not a ``kind``."""
    return msgspec.json.decode(text, type=kind, dec_hook=lambda _, name: getattr(torch, name))
