"""A training run in memory: model, optimizer and streams."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .checkpoints import Checkpoint, newest
from .errors import CharLMError
from .generation import generate
from .model import STATES, CharRNN, build_model
from .processes import Processes
from .settings import Settings
from .streams import Streams, windows
from .vocabulary import Vocabulary

__all__ = ["Run", "load", "read_settings"]

_MAX_VALIDATION = 1 << 18  # characters; more take longer and hardly change the loss


def load(out: str | Path) -> tuple[CharRNN, Vocabulary]:
    """Returns the model of the newest checkpoint in a run's folder, in eval mode, and its
    vocabulary.

    Skips damaged checkpoints, with a warning to the logger ``rnn_ext``.

    Raises:
        CharLMError: there is no checkpoint, or all are damaged.
    """
    checkpoint = newest(Path(out))
    if checkpoint is None:
        raise CharLMError(f"{out} has no checkpoint; train a model there first")
    return _trained(checkpoint).eval(), checkpoint.vocabulary


def read_settings(out: str | Path) -> Settings | None:
    """Returns the settings of the run in a folder; None if it has no run.

    Raises:
        CharLMError: all of its checkpoints are damaged.
    """
    checkpoint = newest(Path(out), quiet=True)
    return checkpoint.settings if checkpoint else None


class Run:
    """A run resumed from ``checkpoint``, with this process's share of its streams.

    Attributes:
        steps_done: number of steps that the run has taken.
        settings: the settings of the checkpoint.
        model: the model in training.
    """

    def __init__(self, checkpoint: Checkpoint, tokens: Tensor, processes: Processes) -> None:
        self._checkpoint = checkpoint
        self._processes = processes
        self._local = processes.share(checkpoint.settings.batch_size)
        self.steps_done = checkpoint.step
        self.settings = settings = checkpoint.settings
        self._device = processes.device(settings.device)

        self.model = _trained(checkpoint).to(self._device)
        self._optimizer = torch.optim.Adam(
            self.model.parameters(), lr=settings.lr, fused=self._device.type in ("cpu", "cuda")
        )
        _load_state(self._optimizer, checkpoint.training)
        self._states = tuple(
            checkpoint.training[name][:, self._local].to(self._device)
            for name in STATES[settings.cell]
        )

        trained = len(tokens) - _validation_size(len(tokens), settings.val_fraction)
        self._streams = Streams(
            tokens[:trained], settings.batch_size, settings.seq_len, self._local
        )
        self._validation = tokens[trained:]

    def is_due(self, *intervals: str) -> bool:
        """Whether one of these intervals ends at this step; at the last step all do."""
        return self.steps_done == self.settings.steps or any(
            self.steps_done % getattr(self.settings, interval) == 0 for interval in intervals
        )

    def step(self) -> Tensor:
        """Trains on the next characters of every stream.

        Returns:
            The mean loss of this process's streams, in nats per character.

        Raises:
            CharLMError: the gradient is not finite.
        """
        self.steps_done += 1
        settings = self.settings
        if settings.dropout:
            # The seed depends on step and process alone, so checkpoints need no generator state.
            number = self.steps_done * self._processes.size + self._processes.rank
            torch.manual_seed((settings.seed + number) % 2**64)
        self.model.train()
        inputs, targets = self._streams.read(self.steps_done)
        loss, self._states = self._loss(inputs, targets, self._states)
        self._optimizer.zero_grad()
        loss.backward()
        self._processes.average_gradients(self.model.parameters())
        try:
            nn.utils.clip_grad_norm_(
                self.model.parameters(), settings.clip or math.inf, error_if_nonfinite=True
            )
        except RuntimeError:
            raise self._diverged("the gradient is not finite") from None
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate(self.steps_done)
        self._optimizer.step()
        return loss.detach()

    def check_loss(self, bits: float) -> None:
        """Checks that the loss, in bits per character, has not exploded.

        Raises:
            CharLMError: it is above a hundred times the loss of guessing.
        """
        guessing = math.log2(len(self._checkpoint.vocabulary))
        if not bits <= 100 * max(guessing, 1):
            raise self._diverged(f"{bits:.3g} bits per character; guessing gives {guessing:.1f}")

    def _diverged(self, evidence: str) -> CharLMError:
        return CharLMError(
            f"the training diverges in step {self.steps_done} ({evidence}); "
            "choose a smaller learning rate"
        )

    @torch.no_grad()
    def validate(self) -> float | None:
        """Returns bits per character of the validation text, or None if there is none."""
        if not len(self._validation):
            return None
        self.model.eval()
        settings = self.settings
        nats, count = 0.0, 0
        states: tuple[Tensor, ...] = ()
        streams = windows(self._validation, settings.batch_size, settings.seq_len)
        local = self._processes.share(streams[0][0].size(1))
        for inputs, targets in streams if local.start < local.stop else []:
            loss, states = self._loss(inputs[:, local], targets[:, local], states)
            nats += float(loss) * targets[:, local].numel()
            count += targets[:, local].numel()
        nats, characters = self._processes.mean(nats, count)
        return nats / characters / math.log(2)

    def _loss(
        self, inputs: Tensor, targets: Tensor, states: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Returns the mean loss over all characters, and the final states, detached."""
        hx = states[0] if len(states) == 1 else states or None
        with torch.autocast(
            self._device.type, torch.bfloat16, enabled=self.settings.dtype == "bf16"
        ):
            logits, h_n = self.model(inputs.to(self._device), hx)
        targets = targets.to(self._device).flatten()
        loss = cross_entropy(logits.float().flatten(0, 1), targets)
        finals = (h_n,) if isinstance(h_n, Tensor) else h_n
        return loss, tuple(t.detach().float() for t in finals)

    def sample(self, length: int) -> str:
        """Returns ``length`` characters that the model generates."""
        vocabulary = self._checkpoint.vocabulary
        return "".join(generate(self.model.eval(), vocabulary, length=length, seed=self.steps_done))

    def save(self, out: Path) -> None:
        """Writes a checkpoint, together with the other processes."""
        joined = map(self._processes.joined_along_batch, self._states)
        states = dict(zip(STATES[self.settings.cell], joined, strict=True))
        if self._processes.is_main:
            replace(
                self._checkpoint,
                step=self.steps_done,
                model=dict(self.model.named_parameters()),
                training={**states, **_state(self._optimizer)},
            ).save(out)


@torch.no_grad()
def _trained(checkpoint: Checkpoint) -> CharRNN:
    model = build_model(checkpoint.settings, len(checkpoint.vocabulary))
    for name, parameter in model.named_parameters():  # a tied one occurs once, as it was saved
        parameter.copy_(checkpoint.model[name])
    return model


def _validation_size(count: int, fraction: float) -> int:
    """Returns how many of ``count`` characters to validate on: none for a fraction of 0, else at
    least 2 (to predict the second from the first) and at most ``count - 2``."""
    return max(2, min(int(count * fraction), _MAX_VALIDATION, count - 2)) if fraction else 0


def _state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimizer's tensors, named ``optimizer.<number of the parameter>.<name>``."""
    return {
        f"optimizer.{number}.{name}": value
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def _load_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".")
            state.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
