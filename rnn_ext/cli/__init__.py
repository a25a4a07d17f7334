"""The command ``rnn-ext``: runs a sub-command and turns failures into exit codes.

0: success. 2: an error that the user can fix, described in one sentence on stderr. 130: Ctrl-C.
141: the reader of the output ended (``rnn-ext demo | head -1``). A shell reports the last two for a
program that SIGINT or SIGPIPE ended.
"""

import argparse
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

import torch

from .. import __version__
from .errors import UserError, sentence

__all__ = ["main"]

# name -> module with add_arguments(parser) and run(args) -> exit code, line for --help
_COMMANDS = {
    "demo": ("rnn_ext.cli.demo", "memorize one sentence, character by character"),
    "train": ("rnn_ext.cli.train", "train a character model on text files"),
    "generate": ("rnn_ext.cli.generate", "generate text from a trained model"),
    "bench": ("rnn_ext.bench.command", "time rnn_ext.RNN against torch.nn.RNN"),
    "info": ("rnn_ext.cli.info", "show how this copy was built and what it runs on"),
}
_OPTIONAL_PACKAGES = {"matplotlib", "safetensors", "tqdm"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: the process's own) and returns the exit code."""
    _print_anything()
    try:
        try:
            with _logged_warnings():
                return _dispatch(sys.argv[1:] if argv is None else argv)
        finally:
            _flush_stdout()  # so that a failed write raises here, not at exit
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _abandon_stdout()
        return 141
    except OSError as error:
        _abandon_stdout()
        return _complain(sentence(error))
    except UserError as error:
        return _complain(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _OPTIONAL_PACKAGES:
            raise
        return _complain(f"this needs {package}; install it with: pip install {package}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _complain("out of memory; choose smaller sizes")


def _dispatch(argv: Sequence[str]) -> int:
    command = next((word for word in argv if not word.startswith("-")), None)
    args = _build_parser(command).parse_args(argv)
    if args.command is None:
        raise UserError(f"missing command: {', '.join(_COMMANDS)} (see rnn-ext --help)")
    code: int = args.run(args)
    return code


def _build_parser(command: str | None) -> argparse.ArgumentParser:
    """Returns a parser that lists all commands; imports only ``command`` and adds its flags."""
    parser = _Parser(
        prog="rnn-ext",
        description="Train and run character models, time the kernels, show the build.",
        epilog="'rnn-ext COMMAND --help' lists the flags of a command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, (module_name, summary) in _COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
        )
        if name == command:
            module = import_module(module_name)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raises one sentence, without the usage that argparse prints."""
        raise UserError(message)


@contextmanager
def _logged_warnings() -> Iterator[None]:
    """Prints the package's warnings on stderr, in the format of the command's own messages."""
    logger, handler = logging.getLogger("rnn_ext"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("rnn-ext: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _complain(message: str) -> int:
    print(f"rnn-ext: {message}", file=sys.stderr)
    return 2


def _print_anything() -> None:
    """Makes stdout and stderr print escapes for characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush_stdout() -> None:
    if sys.stdout is not None:  # None where the shell closed it: rnn-ext demo >&-
        sys.stdout.flush()


def _abandon_stdout() -> None:
    """Discards output that cannot be written, so that the flush at exit does not fail."""
    try:
        _flush_stdout()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's CPU allocator raises a bare RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "DefaultCPUAllocator" in str(error)
    )
