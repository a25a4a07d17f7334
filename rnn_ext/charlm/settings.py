"""What decides how a run of training goes: the flags of ``rnn-ext train``."""

from dataclasses import dataclass, replace
from math import cos, pi
from typing import Any

from ..errors import UserError

__all__ = ["Settings"]

# What may be asked anew when a run goes on: it changes what is seen of the run, not its course.
_VIEW = {"log_every", "eval_every", "sample_every", "checkpoint_every"}


@dataclass(frozen=True)
class Settings:
    """The settings of one run.

    Attributes:
        steps: optimizer steps in all.
        batch_size: parallel streams B, over all processes.
        seq_len: characters T of each stream in a step; gradients reach no further back.
        hidden_size: width H of the embedding and of the hidden state.
        num_layers: RNN layers.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        dropout: share of every layer's output that is dropped in training.
        tied: whether embedding and output layer share one matrix.
        lr: Adam's learning rate.
        schedule: ``"constant"``, or ``"cosine"``, which takes it from ``lr`` to 0 over all steps.
        clip: largest norm of the gradient.
        min_count: rarer characters become ``<unk>``.
        val_fraction: share of the text, from its end, that is kept for validation.
        dtype: ``"fp32"``, or ``"bf16"`` for autocast to bfloat16; weights stay float32.
        device: where to train.
        seed: of the initial weights and of dropout.
        reference: train ``torch.nn.RNN`` instead of ``rnn_ext.RNN``.
        log_every: steps from one line of the log to the next.
        eval_every: steps from one validation to the next.
        sample_every: steps from one sample of what the model writes to the next.
        checkpoint_every: steps from one checkpoint to the next.
    """

    steps: int = 2000
    batch_size: int = 32
    seq_len: int = 128
    hidden_size: int = 256
    num_layers: int = 1
    nonlinearity: str = "tanh"
    dropout: float = 0.0
    tied: bool = False
    lr: float = 0.002
    schedule: str = "constant"
    clip: float = 1.0
    min_count: int = 1
    val_fraction: float = 0.05
    dtype: str = "fp32"
    device: str = "cpu"
    seed: int = 0
    reference: bool = False
    log_every: int = 10
    eval_every: int = 100
    sample_every: int = 500
    checkpoint_every: int = 500

    def learning_rate(self, step: int) -> float:
        """Of a step, counted from 1."""
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + cos(pi * (step - 1) / self.steps)) / 2

    def going_on(self, given: dict[str, Any]) -> "Settings":
        """These settings for a run that is resumed with those in ``given``.

        Raises:
            UserError: one of them would have made another run of it.
        """
        after = replace(self, **given)
        may_change = _VIEW if self.schedule == "cosine" else _VIEW | {"steps"}
        for name in given.keys() - may_change:
            before, value = getattr(self, name), getattr(after, name)
            if value != before:
                raise UserError(
                    f"--{name.replace('_', '-')} {value} contradicts the run, which has {before}; "
                    "leave the flag out, or train in another folder"
                )
        return after
