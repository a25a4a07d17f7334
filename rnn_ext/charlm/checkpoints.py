"""Checkpoints: a training run on disk, to resume it or to generate text.

A checkpoint is a folder ``step-0000000500``:

    model.safetensors      the weights
    training.safetensors   the optimizer's state and the states that the streams carry
    run.json               format, step, settings, vocabulary, corpus, tokens, digests of all files

It is written under a temporary name and then renamed, so a folder with this name is complete.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .corpus import Tokens
from .errors import CharLMError
from .files import new_folder, remove_folder, remove_leftovers
from .model import STATES, build_model
from .settings import Settings
from .vocabulary import Vocabulary

__all__ = ["Checkpoint", "newest", "tidy"]

_FORMAT = "rnn_ext character model 2"
_KEPT = 2  # the newest, and one to fall back on

_logger = logging.getLogger("rnn_ext")


class _DamagedError(Exception):
    """A file of a checkpoint is missing, was changed, or contradicts another."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to continue bit for bit."""

    step: int
    settings: Settings
    vocabulary: Vocabulary
    corpus: list[str]
    tokens: Tokens
    model: Mapping[str, Tensor]
    training: Mapping[str, Tensor]

    def save(self, out: Path) -> None:
        """Writes the checkpoint to the folder of the run, where it appears once it is complete.

        Raises:
            OSError: it cannot be written; earlier checkpoints are intact.
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
        about["sha256 of the above"] = _digest_of_json(about)
        files["run.json"] = json.dumps(about, indent=2).encode()
        with new_folder(folder) as temporary:
            for name, data in files.items():
                (temporary / name).write_bytes(data)
        tidy(out)

    @classmethod
    def load(cls, folder: Path) -> "Checkpoint":
        """Reads the checkpoint in ``folder``.

        Raises:
            _DamagedError: it is damaged.
            CharLMError: another version of this package wrote it.
        """
        try:
            about = json.loads((folder / "run.json").read_bytes())
            written = about.pop("sha256 of the above", None)
            if about["format"] != _FORMAT:
                raise CharLMError(
                    f"another version of rnn_ext wrote {folder} (its format is "
                    f"{about['format']!r}); use that version, or train in another folder"
                )
            if written != _digest_of_json(about):
                raise ValueError("run.json was changed")
            checkpoint = cls(
                about["step"],
                Settings(**about["settings"]),
                Vocabulary(about["characters"], with_unknown=about["with_unknown"]),
                about["corpus"],
                Tokens(**about["tokens"]),
                *(_tensors(folder / name, digest) for name, digest in about["sha256"].items()),
            )
            checkpoint._check_shapes()
            return checkpoint
        except FileNotFoundError as error:
            raise _DamagedError(f"{Path(error.filename).name} is missing") from None
        except (ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
            raise _DamagedError(str(error)) from None

    def _check_shapes(self) -> None:
        settings = self.settings
        with torch.device("meta"):
            model = build_model(settings, len(self.vocabulary))
        expected = {name: p.shape for name, p in model.named_parameters()}
        state = (settings.num_layers, settings.batch_size, settings.hidden_size)
        if {name: t.shape for name, t in self.model.items()} != expected:
            raise ValueError("run.json does not fit the weights")
        if any(self.training[name].shape != state for name in STATES[settings.cell]):
            raise ValueError("run.json does not fit the states")


def newest(out: Path, *, quiet: bool = False) -> Checkpoint | None:
    """Returns the newest intact checkpoint in a run's folder, or None if it has no checkpoint.

    Logs a warning for each damaged checkpoint that it skips, unless ``quiet``.

    Raises:
        CharLMError: all are damaged, or another version of this package wrote them.
    """
    folders = _folders(out)
    for folder in reversed(folders):
        try:
            checkpoint = Checkpoint.load(folder)
        except _DamagedError as error:
            if not quiet:
                _logger.warning("%s is damaged (%s); using the checkpoint before it", folder, error)
            continue
        return checkpoint
    if folders:
        raise CharLMError(f"all checkpoints in {out} are damaged; train again in another folder")
    return None


def tidy(out: Path, newest: int | None = None) -> None:
    """Removes old checkpoints, damaged ones, and unfinished files of a killed run.

    Args:
        newest: step of the newest intact checkpoint; those after it are damaged. None: all are
            intact.
    """
    folders = _folders(out)
    damaged = [f for f in folders if newest is not None and f.name > f"step-{newest:010}"]
    for folder in [*damaged, *folders[: len(folders) - len(damaged)][:-_KEPT]]:
        remove_folder(folder)
    remove_leftovers(out)


def _folders(out: Path) -> list[Path]:
    return sorted(out.glob("step-??????????"))


def _tensors(path: Path, digest: str) -> dict[str, Tensor]:
    data = path.read_bytes()
    if _digest(data) != digest:
        raise ValueError(f"{path.name} was changed")
    return load(data)


def _digest_of_json(about: dict[str, Any]) -> str:
    return _digest(json.dumps(about, sort_keys=True).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
