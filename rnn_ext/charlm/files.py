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
    """Yields a file to write, which replaces ``path`` once it is on disk.

    Raises:
        OSError: it cannot be written; ``path`` is as it was before.
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
    """Yields a folder to fill, which becomes ``path``, a new one, once it is on disk.

    Raises:
        OSError: it cannot be written; there is no ``path``.
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
    """Adds ``path`` to an error that names no file: that of a write to an open one does not."""
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
    """Removes a folder that must never be seen half removed under its own name."""
    temporary = temporary_path(path)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def remove_leftovers(parent: Path) -> None:
    """Removes what a program that was killed had not finished in ``parent``."""
    for path in parent.glob(temporary_path(Path("*")).name):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def temporary_path(path: Path) -> Path:
    """Returns the path under which ``path`` is written; a leftover if the program is killed."""
    return path.with_name(f".{path.name}.new")


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
