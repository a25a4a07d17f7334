"""Files and folders that appear complete or not at all, and a lock on a folder."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "locked",
    "new_file",
    "new_folder",
    "remove_folder",
    "remove_leftovers",
    "temporary_path",
    "with_name",
]


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file to write; it replaces ``path`` once it is on disk.

    Raises:
        OSError: it cannot be written; ``path`` is unchanged.
    """
    temporary = temporary_path(path)
    try:
        with with_name(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a folder to fill; it is renamed to ``path`` once it is on disk.

    Raises:
        OSError: it cannot be written, or ``path`` exists.
    """
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with with_name(path):
            temporary.mkdir()
            yield temporary
            for file in temporary.iterdir():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            _sync_folder(temporary)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def with_name(path: Path) -> Iterator[None]:
    """Adds ``path`` to an OSError that names no file, such as one from a write to an open file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a lock on ``folder``, which is created if it is missing, until the block ends.

    A folder that it created and that is still empty at the end is removed again.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the folder cannot be created.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def remove_folder(path: Path) -> None:
    """Removes a folder, renaming it first: under its own name it is never half removed."""
    temporary = temporary_path(path)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def remove_leftovers(parent: Path) -> None:
    """Removes the temporary files and folders that a killed program left in ``parent``."""
    for path in parent.glob(temporary_path(Path("*")).name):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def temporary_path(path: Path) -> Path:
    """Returns the path at which ``path`` is written until it is complete."""
    return path.with_name(f".{path.name}.new")


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
