"""The settings of a training run.

The help of ``rnn-ext train``, the docstring of :class:`Settings` and the table in
``docs/text-generator.md`` all come from the fields below.
"""

from dataclasses import dataclass, field, fields
from math import cos, pi
from typing import Any

from .errors import CharLMError

__all__ = ["Settings"]

# Settings that may change on resume: they affect what a run reports and saves, not the training.
_RESUMABLE = {"log_every", "eval_every", "sample_every", "checkpoint_every"}


def _setting(default: Any, help: str, *choices: str) -> Any:
    return field(default=default, metadata={"help": help, "choices": choices or None})


@dataclass(frozen=True)
class Settings:
    steps: int = _setting(2000, "optimizer steps in total")
    batch_size: int = _setting(32, "streams of text to read in parallel, over all processes")
    seq_len: int = _setting(
        128, "characters of each stream in a step; gradients reach no further back"
    )
    hidden_size: int = _setting(256, "size of the embedding and of the hidden state")
    cell: str = _setting("rnn", "kind of layer", "rnn", "gru", "lstm")
    num_layers: int = _setting(1, "number of layers")
    nonlinearity: str = _setting(
        "tanh", "activation function; relu needs the cell rnn", "tanh", "relu"
    )
    dropout: float = _setting(
        0.0, "probability of zeroing an element of a layer's output in training"
    )
    tied: bool = _setting(False, "share one matrix between the embedding and the output layer")
    lr: float = _setting(0.002, "learning rate of Adam")
    schedule: str = _setting(
        "constant", "learning rate over time; cosine takes it to 0", "constant", "cosine"
    )
    clip: float = _setting(1.0, "largest norm of the gradient; 0 switches clipping off")
    min_count: int = _setting(1, "replace characters that occur less often by <unk>")
    val_fraction: float = _setting(
        0.05, "share of the text, from its end, to validate on; 0 for no validation"
    )
    dtype: str = _setting(
        "fp32", "bf16 computes in bfloat16 (autocast); the weights stay float32", "fp32", "bf16"
    )
    device: str = _setting("cpu", "device to train on, such as cpu or cuda")
    seed: int = _setting(0, "seed of the initial weights and of dropout")
    encoding: str = _setting(
        "utf-8", "encoding of the text; a byte order mark selects UTF-16 or UTF-32 by itself"
    )
    reference: bool = _setting(False, "train torch's layers instead of rnn_ext's, to compare")
    log_every: int = _setting(10, "steps between lines of the log")
    eval_every: int = _setting(100, "steps between validations")
    sample_every: int = _setting(500, "steps between samples of generated text")
    checkpoint_every: int = _setting(500, "steps between checkpoints")

    def __post_init__(self) -> None:
        if self.cell != "rnn" and self.nonlinearity != "tanh":
            raise CharLMError(
                f"the cell {self.cell} supports only the nonlinearity tanh, not {self.nonlinearity}"
            )

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 1."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + cos(pi * (step - 1) / self.steps)) / 2

    def check_resumable_with(self, settings: "Settings") -> None:
        """Checks that a run with these settings may continue with ``settings``.

        Raises:
            CharLMError: a setting that affects the training differs.
        """
        may_change = _RESUMABLE if self.schedule == "cosine" else _RESUMABLE | {"steps"}
        for name in (f.name for f in fields(self) if f.name not in may_change):
            before, value = getattr(self, name), getattr(settings, name)
            if value != before:
                raise CharLMError(
                    f"{name.replace('_', ' ')} {value} contradicts the run, which has {before}; "
                    "leave it out, or train in another folder"
                )


Settings.__doc__ = "The settings of a training run.\n\nAttributes:\n" + "\n".join(
    f"    {f.name}: {f.metadata['help']}. Default: {f.default!r}" for f in fields(Settings)
)
