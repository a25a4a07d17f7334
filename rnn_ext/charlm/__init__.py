"""A character-level language model on a plain RNN.

    from rnn_ext import charlm

    model, vocabulary = charlm.train(["book.txt"], "run", steps=1000, hidden_size=128)
    print("".join(charlm.generate(model, vocabulary, "Once", 200, temperature=0.8)))
    model, vocabulary = charlm.load("run")

Training and checkpoints need the packages of the extra ``cli``, which are imported when they are
used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .generation import generate
from .model import CharRNN
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from .run import load
    from .training import train

__all__ = ["CharRNN", "Vocabulary", "generate", "load", "train"]

_LATE = {"load": ".run", "train": ".training"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name], __name__), name)
