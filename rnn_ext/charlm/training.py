"""Training: from text files, or from where it stopped, to a model."""

import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from ..errors import UserError
from .checkpoints import Checkpoint, newest, tidy
from .corpus import prepare
from .log import Log
from .model import CharRNN
from .plot import plot
from .processes import Processes
from .run import Run, build_model
from .settings import Settings
from .vocabulary import Vocabulary

__all__ = ["train"]

_SAMPLE = 200  # characters


def train(
    corpus: Sequence[str | Path], out: str | Path, *, resume: bool = False, **given: Any
) -> tuple[CharRNN, Vocabulary]:
    """Train a character model on text files, as ``rnn-ext train`` does.

    Args:
        corpus: UTF-8 text files, learned as one text; none are needed to go on with a run.
        out: folder for checkpoints, log and plot; made where there is none.
        resume: go on with the run in ``out``, if there is one, bit for bit as if it had not
            stopped.
        given: the :class:`Settings` that differ from the defaults, or from those of the run.

    Returns:
        The model, in eval mode, and its vocabulary.

    Raises:
        UserError: something that the caller can put right.
        KeyboardInterrupt: Ctrl-C; a checkpoint has been saved.
    """
    out = Path(out)
    with torch.random.fork_rng(), Processes.joined() as processes:
        if processes.leads:
            _begin([str(Path(path).absolute()) for path in corpus], out, resume, given)
        processes.wait()
        checkpoint = newest(out)
        assert checkpoint is not None
        settings = checkpoint.settings.going_on(given)
        if settings.batch_size % processes.size:
            raise UserError(
                f"{processes.size} processes cannot share {settings.batch_size} streams evenly; "
                "choose another --batch-size or number of processes"
            )
        checkpoint = replace(checkpoint, settings=settings)
        run = Run(checkpoint, checkpoint.tokens.map(_token_file(out)), processes)
        with Log(out / "log.jsonl", run.steps_done) if processes.leads else nullcontext() as log:
            finished = _walk(run, out, log, processes)
        if processes.leads:
            plot(out / "log.jsonl", out / "loss.png")
    if not finished:
        raise KeyboardInterrupt
    return run.model.eval(), checkpoint.vocabulary


def _begin(corpus: list[str], out: Path, resume: bool, given: dict[str, Any]) -> None:
    """See to it that ``out`` holds a checkpoint of the run that is meant, or make its first."""
    checkpoint = newest(out)
    if not resume and (checkpoint or (out / "log.jsonl").exists()):
        raise UserError(
            f"{out} holds a run already; go on with it by --resume, or name another folder"
        )
    if checkpoint:
        checkpoint.settings.going_on(given)
        if corpus and corpus != checkpoint.corpus:
            raise UserError(
                f"the run in {out} learns from {', '.join(checkpoint.corpus)}; "
                "name these files, or none, to go on with it"
            )
        tidy(out)
        return
    if not corpus:
        raise UserError(f"{out} holds no run to go on with; name text files to begin one")
    settings = Settings(**given)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder; name one, or one to be made")
    vocabulary, tokens = prepare([Path(c) for c in corpus], _token_file(out), settings.min_count)
    hidden = torch.zeros(settings.num_layers, settings.batch_size, settings.hidden_size)
    weights = dict(build_model(settings, len(vocabulary)).named_parameters())
    Checkpoint(0, settings, vocabulary, corpus, tokens, weights, {"hidden": hidden}).save(out)


def _walk(run: Run, out: Path, log: Log | None, processes: Processes) -> bool:
    """Take the steps that are left; False where Ctrl-C came before the last."""
    settings = run.settings
    characters = settings.batch_size * settings.seq_len  # of a step
    spent, reported = 0.0, run.steps_done
    with _progress(run, characters, shown=processes.leads) as bar, _ctrl_c() as pressed:
        while run.steps_done < settings.steps:
            begun = time.perf_counter()
            loss = run.step()
            # Several processes have to agree where to stop, which they do when they report.
            stops = bool(pressed) and processes.size == 1
            reports = run.is_due("log_every", "eval_every", "sample_every")
            if reports:
                nats, votes = processes.mean(float(loss), float(bool(pressed)))
                stops = stops or votes > 0
            spent += time.perf_counter() - begun
            bar.update(characters)
            if reports:
                line = {
                    "step": run.steps_done,
                    "train_bpc": nats / math.log(2),
                    "chars_per_s": round((run.steps_done - reported) * characters / spent),
                }
                spent, reported = 0.0, run.steps_done
                if run.is_due("eval_every"):
                    line["val_bpc"] = run.validate()
                if log:
                    _report(run, log, line)
            if stops or run.is_due("checkpoint_every"):
                if log:
                    log.sync()
                run.save(out)
            if stops:
                return run.steps_done == settings.steps
    return True


def _report(run: Run, log: Log, line: dict[str, Any]) -> None:
    """To the log, and now and then to the terminal."""
    if "val_bpc" in line:
        tqdm.write(
            f"Step [{run.steps_done}/{run.settings.steps}], bits per character: "
            f"{line['train_bpc']:.3f}, in validation: {line['val_bpc']:.3f}"
        )
    if run.is_due("sample_every"):
        line["sample"] = run.sample(_SAMPLE)
        tqdm.write(line["sample"])
    log.write(line)


def _progress(run: Run, characters: int, *, shown: bool) -> tqdm:
    """Characters done, characters a second, time left."""
    return tqdm(
        total=run.settings.steps * characters,
        initial=run.steps_done * characters,
        unit="char",
        unit_scale=True,
        disable=None if shown else True,  # None: silent where stderr is no terminal
    )


@contextmanager
def _ctrl_c() -> Iterator[list[int]]:
    """Notes Ctrl-C in the list, to be acted on between two steps; a second one acts at once."""
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield pressed
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _token_file(out: Path) -> Path:
    return out / "tokens.bin"
