"""A run of training on disk, to go on from or to generate text with.

A checkpoint is a folder ``step-0000000500``:

    run.json               format, step, settings, vocabulary, corpus, tokens, and the digests of
    model.safetensors      the weights
    training.safetensors   the optimizer's state and the hidden state that the streams carry

It is written under another name and renamed, so a folder of that name is complete.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import UserError
from .corpus import Tokens
from .files import new_folder, remove_folder, remove_leftovers
from .settings import Settings
from .vocabulary import Vocabulary

__all__ = ["Checkpoint", "newest", "tidy"]

_FORMAT = "rnn_ext character model 1"
_KEPT = 2  # the newest, and one to fall back on


@dataclass(frozen=True)
class Checkpoint:
    """All that a run goes on from, bit for bit."""

    step: int
    settings: Settings
    vocabulary: Vocabulary
    corpus: list[str]
    tokens: Tokens
    model: Mapping[str, Tensor]
    training: Mapping[str, Tensor]

    def save(self, out: Path) -> None:
        """Write it into the folder of the run, where it stands once it is complete.

        Raises:
            OSError: it cannot be written; what was there before still is.
        """
        folder = out / f"step-{self.step:010}"
        if folder.exists():
            return
        files = {
            "model.safetensors": save(dict(self.model)),
            "training.safetensors": save(dict(self.training)),
        }
        about = {
            "format": _FORMAT,
            "step": self.step,
            "settings": asdict(self.settings),
            "characters": "".join(self.vocabulary.char2idx),
            "with_unknown": self.vocabulary.unknown is not None,
            "corpus": self.corpus,
            "tokens": asdict(self.tokens),
            "sha256": {name: _digest(data) for name, data in files.items()},
        }
        files["run.json"] = json.dumps(about, indent=2).encode()
        with new_folder(folder) as temporary:
            for name, data in files.items():
                (temporary / name).write_bytes(data)
        tidy(out)

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Read one.

        Raises:
            UserError: a part is missing, damaged or another checkpoint's.
        """
        try:
            about = json.loads((folder / "run.json").read_bytes())
            if about["format"] != _FORMAT:
                raise ValueError(f"its format is {about['format']!r}")
            return cls(
                about["step"],
                Settings(**about["settings"]),
                Vocabulary(about["characters"], with_unknown=about["with_unknown"]),
                about["corpus"],
                Tokens(**about["tokens"]),
                *(_tensors(folder / name, digest) for name, digest in about["sha256"].items()),
            )
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise UserError(
                f"{folder} is damaged or no checkpoint of rnn-ext train ({error}); "
                "remove it to go on from the one before"
            ) from None


def newest(out: Path) -> Checkpoint | None:
    """The last checkpoint of a run's folder, or None."""
    folders = _folders(out)
    return Checkpoint.load(folders[-1]) if folders else None


def tidy(out: Path) -> None:
    """Remove checkpoints that newer ones stand in for, and what a killed run left unfinished."""
    for folder in _folders(out)[:-_KEPT]:
        remove_folder(folder)
    remove_leftovers(out)


def _folders(out: Path) -> list[Path]:
    return sorted(out.glob("step-??????????"))


def _tensors(path: Path, digest: str) -> dict[str, Tensor]:
    data = path.read_bytes()
    if _digest(data) != digest:
        raise ValueError(f"{path.name} is not what was written")
    return load(data)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
