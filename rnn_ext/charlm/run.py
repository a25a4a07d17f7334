"""One run of training in memory: model, optimizer, streams; a step, a validation, a checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .. import RNN
from ..errors import UserError
from .checkpoints import Checkpoint, newest
from .generation import generate
from .model import CharRNN
from .processes import Processes
from .settings import Settings
from .streams import Streams, windows
from .vocabulary import Vocabulary

__all__ = ["Run", "build_model", "load"]

_MOST_VALIDATION = 1 << 18  # characters: more would hardly move the figure, and delay it


def build_model(settings: Settings, vocab_size: int) -> CharRNN:
    """The model that ``settings`` describe, as it is before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return CharRNN(
            vocab_size,
            settings.hidden_size,
            num_layers=settings.num_layers,
            nonlinearity=settings.nonlinearity,
            dropout=settings.dropout,
            tied=settings.tied,
            rnn_class=nn.RNN if settings.reference else RNN,
        )


def load(out: str | Path) -> tuple[CharRNN, Vocabulary]:
    """The model of the newest checkpoint in a run's folder, in eval mode, and its vocabulary.

    Raises:
        UserError: there is none, or it is damaged.
    """
    checkpoint = newest(Path(out))
    if checkpoint is None:
        raise UserError(f"{out} holds no checkpoint; make one with rnn-ext train")
    return _trained(checkpoint).eval(), checkpoint.vocabulary


class Run:
    """What ``checkpoint`` holds, brought to life; this process's share of it.

    Attributes:
        steps_done: how far it has got.
        settings: those of the checkpoint.
        model: the one that is trained.
    """

    def __init__(self, checkpoint: Checkpoint, tokens: Tensor, processes: Processes) -> None:
        self._checkpoint = checkpoint
        self._processes = processes
        self._own = processes.share(checkpoint.settings.batch_size)
        self.steps_done = checkpoint.step
        self.settings = settings = checkpoint.settings
        self._device = processes.device(settings.device)

        self.model = _trained(checkpoint).to(self._device)
        self._optimizer = torch.optim.Adam(
            self.model.parameters(), lr=settings.lr, fused=self._device.type in ("cpu", "cuda")
        )
        _load_state(self._optimizer, checkpoint.training)
        self._hidden = checkpoint.training["hidden"][:, self._own].to(self._device)

        validated = _validated(len(tokens), settings.val_fraction)
        self._streams = Streams(
            tokens[:-validated], settings.batch_size, settings.seq_len, self._own
        )
        self._validation = tokens[-validated:]

    def is_due(self, *intervals: str) -> bool:
        """Whether one of these settings says so at this step; all do at the last."""
        return self.steps_done == self.settings.steps or any(
            self.steps_done % getattr(self.settings, interval) == 0 for interval in intervals
        )

    def step(self) -> Tensor:
        """Train on the next characters of every stream; return the mean loss of this share.

        Raises:
            UserError: the training diverges.
        """
        self.steps_done += 1
        settings = self.settings
        if settings.dropout:
            # A function of the step, so that no generator's state has to be kept.
            place = self.steps_done * self._processes.size + self._processes.rank
            torch.manual_seed((settings.seed + place) % 2**64)
        self.model.train()
        inputs, targets = self._streams.read(self.steps_done)
        loss, self._hidden = self._loss(inputs, targets, self._hidden)
        self._optimizer.zero_grad()
        loss.backward()
        self._processes.average_gradients(self.model.parameters())
        try:
            nn.utils.clip_grad_norm_(
                self.model.parameters(), settings.clip, error_if_nonfinite=True
            )
        except RuntimeError:
            raise UserError(
                f"the training diverges in step {self.steps_done}; choose a smaller --lr"
            ) from None
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate(self.steps_done)
        self._optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def validate(self) -> float:
        """Bits per character of the text kept for validation, read from its beginning."""
        self.model.eval()
        settings = self.settings
        nats, count = 0.0, 0
        hidden = None
        streams = windows(self._validation, settings.batch_size, settings.seq_len)
        own = self._processes.share(streams[0][0].size(1))
        for inputs, targets in streams if own.start < own.stop else []:
            loss, hidden = self._loss(inputs[:, own], targets[:, own], hidden)
            nats += float(loss) * targets[:, own].numel()
            count += targets[:, own].numel()
        nats, characters = self._processes.mean(nats, count)
        return nats / characters / math.log(2)

    def _loss(
        self, inputs: Tensor, targets: Tensor, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The mean over all characters, and the state after them, detached."""
        with torch.autocast(
            self._device.type, torch.bfloat16, enabled=self.settings.dtype == "bf16"
        ):
            logits, hidden = self.model(inputs.to(self._device), hidden)
        targets = targets.to(self._device).flatten()
        loss = cross_entropy(logits.float().flatten(0, 1), targets)
        return loss, hidden.detach().float()

    def sample(self, length: int) -> str:
        """What the model writes by now."""
        vocabulary = self._checkpoint.vocabulary
        first = vocabulary.idx2char[0]
        pieces = generate(
            self.model.eval(), vocabulary, first, length, temperature=0.8, seed=self.steps_done
        )
        return first + "".join(pieces)

    def save(self, out: Path) -> None:
        """Write a checkpoint, together with the other processes."""
        hidden = self._processes.joined_along_batch(self._hidden)
        if self._processes.leads:
            replace(
                self._checkpoint,
                step=self.steps_done,
                model=dict(self.model.named_parameters()),
                training={"hidden": hidden, **_state(self._optimizer)},
            ).save(out)


@torch.no_grad()
def _trained(checkpoint: Checkpoint) -> CharRNN:
    model = build_model(checkpoint.settings, len(checkpoint.vocabulary))
    for name, parameter in model.named_parameters():  # tied ones once, as they are saved
        parameter.copy_(checkpoint.model[name])
    return model


def _validated(count: int, fraction: float) -> int:
    """How many of ``count`` characters are kept for validation: two at least, of which one is
    predicted, and two are left."""
    return max(2, min(int(count * fraction), _MOST_VALIDATION, count - 2))


def _state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its tensors, named ``optimizer.<parameter's number>.<what>``."""
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
