"""Shared by the tests of the text generator: a text, runs of `rnn-ext train`, their files."""

import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from rnn_ext.cli import main

# A run of a second, with every interval in it.
FLAGS = {
    "steps": 12,
    "batch_size": 4,
    "seq_len": 8,
    "hidden_size": 16,
    "log_every": 2,
    "eval_every": 4,
    "sample_every": 6,
    "checkpoint_every": 3,
}


def write_text(path: Path, words: int = 600) -> Path:
    """Words in random order: learnable, but not by memorizing."""
    draw = random.Random(0)
    text = " ".join(draw.choice(["the", "cat", "sat", "on", "a", "mat.\n"]) for _ in range(words))
    path.write_text(text, encoding="utf-8")
    return path


def as_words(flags: dict[str, Any]) -> list[str]:
    words = []
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    return words


def train(*files: Path, out: Path, **flags: Any) -> int:
    """The exit code of a small run of `rnn-ext train`."""
    return main(["train", *map(str, files), "--out", str(out), *as_words({**FLAGS, **flags})])


def resume(out: Path, **flags: Any) -> int:
    return main(["train", "--out", str(out), "--resume", *as_words(flags)])


def log_of(out: Path) -> list[dict[str, Any]]:
    """The lines of the log without what depends on the machine's speed."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("chars_per_s", None)
    return lines


def checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("step-*"))


def state_of(out: Path) -> dict[str, bytes]:
    """The files of a run without its speed: the log and every checkpoint's files."""
    files = {
        f"{folder.name}/{file.name}": file.read_bytes()
        for folder in checkpoints(out)
        for file in folder.iterdir()
    }
    return {**files, "log": json.dumps(log_of(out)).encode()}


# A child of this server has none of its parent's threads, but all modules that are slow to import:
# an optimizer imports torch's compiler.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["rnn_ext.charlm.training", "torch._dynamo", "pytest"])


def start_child(
    *files: Path,
    out: Path,
    kill_at: int = 0,
    after: bool = False,
    environment: dict[str, str] | None = None,
    stderr: Path | None = None,
    **flags: Any,
) -> Any:
    """`train --resume` in a process that kills itself before or after its `kill_at`-th rename."""
    child = _forks.Process(
        target=_child, args=(files, out, kill_at, after, environment or {}, stderr, flags)
    )
    child.start()
    return child


def _child(
    files: tuple[Path, ...],
    out: Path,
    kill_at: int,
    after: bool,
    environment: dict[str, str],
    stderr: Path | None,
    flags: dict[str, Any],
) -> None:
    renames = 0

    def counting(rename: Any) -> Any:
        def call(*paths: Path) -> None:
            nonlocal renames
            renames += 1
            if renames == kill_at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*paths)
            if renames == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        return call

    torch.set_num_threads(1)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # under nohup or in the background some are ignored
    os.environ.update(environment)
    os.rename, os.replace = counting(os.rename), counting(os.replace)
    if stderr is not None:
        sys.stderr = stderr.open("w")
    sys.exit(train(*files, out=out, resume=True, **flags))
