"""A character-level language model on an RNN, GRU or LSTM.

    from rnn_ext import charlm

    settings = charlm.Settings(steps=1000, hidden_size=128)
    model, vocabulary = charlm.train(["book.txt"], "run", settings)
    print("".join(charlm.generate(model, vocabulary, "Once", 200)))
    model, vocabulary = charlm.load("run")

Training and checkpoints need the packages of the extra ``cli``; they are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import CharLMError, Interrupted
from .generation import generate
from .model import CharRNN
from .settings import Settings
from .vocabulary import Vocabulary, escape_controls

if TYPE_CHECKING:
    from .run import load, read_settings
    from .training import train

__all__ = [
    "CharLMError",
    "CharRNN",
    "Interrupted",
    "Settings",
    "Vocabulary",
    "escape_controls",
    "generate",
    "load",
    "read_settings",
    "train",
]

_LAZY = {"load": ".run", "read_settings": ".run", "train": ".training"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)
