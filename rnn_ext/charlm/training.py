"""Trains a model on text files, or resumes a training from its last checkpoint."""

import errno
import logging
import math
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .checkpoints import Checkpoint, newest, tidy
from .corpus import STDIN, prepare, restore
from .errors import CharLMError, Interrupted
from .files import locked
from .log import Log
from .model import STATES, CharRNN, build_model
from .plot import plot
from .processes import Processes
from .progress import Progress
from .run import Run
from .settings import Settings
from .signals import noted_signals
from .vocabulary import Vocabulary, escape_controls

__all__ = ["train"]

_SAMPLE = 200  # characters

_logger = logging.getLogger("rnn_ext")


def train(
    corpus: Sequence[str | Path],
    out: str | Path,
    settings: Settings | None = None,
    *,
    resume: bool = False,
) -> tuple[CharRNN, Vocabulary]:
    """Trains a character model on text files, as ``rnn-ext train`` does.

    Ctrl-C, SIGTERM, SIGHUP or a closed output pipe stops it after the current step and saves a
    checkpoint.

    Args:
        corpus: text files, read as one text; ``"-"`` is standard input. May be empty to resume.
        out: folder for checkpoints, log and plot; created if it is missing. One training at a time
            may use it.
        settings: by default those of the run to resume, or ``Settings()``.
        resume: continue the run in ``out``, if there is one, bit for bit as if it had not stopped.

    Returns:
        The model, in eval mode, and its vocabulary.

    Raises:
        CharLMError: a mistake that the caller can correct.
        Interrupted: a signal stopped the training, and a checkpoint was saved.
        OSError: a file cannot be read or written; the last checkpoint is intact.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise CharLMError(
            f"{out} is not a folder; pass a folder, which is created if it is missing"
        )
    with torch.random.fork_rng(), Processes.joined() as processes, ExitStack() as stack:
        if processes.is_main:
            try:
                stack.enter_context(locked(out))
            except BlockingIOError:
                raise CharLMError(
                    f"another training is using {out}; wait until it ends, or use another folder"
                ) from None
            _open_run([_absolute(path) for path in corpus], out, settings, resume)
        processes.wait()
        checkpoint = newest(out, quiet=True)
        assert checkpoint is not None
        settings = settings or checkpoint.settings
        checkpoint.settings.check_resumable_with(settings)
        if settings.batch_size % processes.size:
            raise CharLMError(
                f"{processes.size} processes cannot share {settings.batch_size} streams evenly; "
                "choose another batch size or number of processes"
            )
        checkpoint = replace(checkpoint, settings=settings)
        run = Run(checkpoint, checkpoint.tokens.map(_token_file(out)), processes)
        log = Log(out / "log.jsonl", run.steps_done) if processes.is_main else nullcontext()
        progress = Progress(
            run.steps_done,
            settings.steps,
            settings.batch_size * settings.seq_len,
            shown=processes.is_main,
        )
        # Record signals until the plot is written: none may interrupt the work after a stop.
        with noted_signals() as signals:
            with log as opened, progress:
                _introduce(run, checkpoint, out, progress)
                _take_steps(run, out, opened, processes, progress, signals)
            if processes.is_main:
                plot(out / "log.jsonl", out / "loss.png")
    if run.steps_done < settings.steps:
        if not signals and progress.failure and not _is_hang_up(progress.failure):
            raise progress.failure
        number = signals[0] if signals else signal.SIGPIPE if progress.failure else signal.SIGINT
        raise Interrupted(number, run.steps_done)
    return run.model.eval(), checkpoint.vocabulary


def _open_run(corpus: list[str], out: Path, settings: Settings | None, resume: bool) -> None:
    """Checks the arguments; starts a new run in ``out``, or prepares the existing one.

    Only the main process calls this.
    """
    if not resume and (list(out.glob("step-*")) or (out / "log.jsonl").exists()):
        raise CharLMError(f"{out} already has a run; resume it, or use another folder")
    checkpoint = newest(out)
    if checkpoint is None:
        _start_run(corpus, out, settings or Settings())
        return
    settings = settings or checkpoint.settings
    checkpoint.settings.check_resumable_with(settings)
    if settings.steps < checkpoint.step:
        raise CharLMError(
            f"the run in {out} has taken {checkpoint.step} steps, more than {settings.steps}; "
            "set more steps to continue it"
        )
    if corpus and corpus != checkpoint.corpus:
        raise CharLMError(
            f"the run in {out} was started with {', '.join(checkpoint.corpus)}; "
            "pass the same files, or none, to continue it"
        )
    tidy(out, checkpoint.step)
    tokens, path = checkpoint.tokens, _token_file(out)
    if not tokens.fit(path):
        restore(checkpoint.corpus, path, checkpoint.vocabulary, tokens, settings.encoding)
        _logger.warning("%s was missing or damaged; recreated it from the text", path)


def _start_run(corpus: list[str], out: Path, settings: Settings) -> None:
    if not corpus:
        raise CharLMError(f"{out} has no run to resume; pass text files to start one")
    vocabulary, tokens = prepare(corpus, _token_file(out), settings.min_count, settings.encoding)
    shape = (settings.num_layers, settings.batch_size, settings.hidden_size)
    states = {name: torch.zeros(shape) for name in STATES[settings.cell]}
    weights = dict(build_model(settings, len(vocabulary)).named_parameters())
    Checkpoint(0, settings, vocabulary, corpus, tokens, weights, states).save(out)


def _introduce(run: Run, checkpoint: Checkpoint, out: Path, progress: Progress) -> None:
    """Prints the sizes of the run, and a warning if its streams overlap."""
    settings, count = run.settings, checkpoint.tokens.count
    if run.steps_done == settings.steps:
        progress.say(
            f"The run in {out} has taken all of its {settings.steps} steps; "
            "set more steps to continue it"
        )
        return
    progress.say(
        f"Text: {count:,} characters, {len(checkpoint.vocabulary.char2idx)} different. "
        f"Model: {sum(p.numel() for p in run.model.parameters()):,} parameters. "
        f"Threads: {torch.get_num_threads()}."
    )
    characters = settings.batch_size * settings.seq_len
    if characters > count:
        progress.say(
            f"A step reads {settings.batch_size} streams of {settings.seq_len} characters, "
            f"{characters:,} in all, more than the text has, so the streams overlap; "
            "choose a smaller batch size or sequence length"
        )


def _take_steps(
    run: Run,
    out: Path,
    log: Log | None,
    processes: Processes,
    progress: Progress,
    signals: list[int],
) -> None:
    """Takes the remaining steps, or those before a signal or a failed write to the output."""
    characters = run.settings.batch_size * run.settings.seq_len  # of a step
    spent, reported = 0.0, run.steps_done
    while run.steps_done < run.settings.steps:
        begun = time.perf_counter()
        loss = run.step()
        reports = run.is_due("log_every", "eval_every", "sample_every")
        if reports:
            nats, votes = processes.mean(float(loss), float(bool(signals or progress.failure)))
        spent += time.perf_counter() - begun
        progress.advance(run.steps_done)
        if reports:
            line: dict[str, Any] = {
                "step": run.steps_done,
                "train_bpc": nats / math.log(2),
                "chars_per_s": round((run.steps_done - reported) * characters / spent),
            }
            spent, reported = 0.0, run.steps_done
            run.check_loss(line["train_bpc"])
            if run.is_due("eval_every"):
                val_bpc = run.validate()
                if val_bpc is not None:
                    line["val_bpc"] = val_bpc
            if log:
                _report(run, log, line, progress)
        # Several processes stop after the same step, on which they agree when they report.
        stops = bool(signals or progress.failure) if processes.size == 1 else reports and votes > 0
        if stops or run.is_due("checkpoint_every"):
            if log:
                log.sync()
            run.save(out)
        if stops:
            return


def _report(run: Run, log: Log, line: dict[str, Any], progress: Progress) -> None:
    """Writes ``line`` to the log; also prints it at a validation or a sample."""
    if run.is_due("sample_every"):
        line["sample"] = run.sample(_SAMPLE)
    log.write(line)
    if run.is_due("eval_every"):
        validation = f", in validation: {line['val_bpc']:.3f}" if "val_bpc" in line else ""
        progress.say(
            f"Step [{run.steps_done}/{run.settings.steps}], bits per character: "
            f"{line['train_bpc']:.3f}{validation}"
        )
    if "sample" in line:
        progress.say(escape_controls(line["sample"]))


def _is_hang_up(error: OSError) -> bool:
    """Whether the reader of the output ended, or its terminal was closed."""
    return error.errno in (errno.EPIPE, errno.EIO)


def _absolute(path: str | Path) -> str:
    return STDIN if str(path) == STDIN else str(Path(path).absolute())


def _token_file(out: Path) -> Path:
    return out / "tokens.bin"
