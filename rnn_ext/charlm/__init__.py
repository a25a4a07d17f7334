"""A character-level language model on a plain RNN."""

from .model import CharRNN
from .vocabulary import Vocabulary

__all__ = ["CharRNN", "Vocabulary"]
