"""``CellError``, and the line of the user's code that it names."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch

from .. import torch_private

__all__ = ["CellError", "line_of_frame", "line_of_function", "line_of_traceback"]


class CellError(ValueError):
    """A function that cannot be a cell.

    The message names the cell, the operation that it cannot have, and the line of the function.
    """


_OURS = (
    os.path.dirname(torch.__file__) + os.sep,
    os.path.dirname(__file__) + os.sep,
    torch_private.__file__,
)


def _is_users(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return not name.startswith(_OURS) and not name.startswith("<frozen")


def line_of_frame(frame: FrameType | None, outermost: FrameType) -> str | None:
    """Returns ``file:line`` of the innermost call that is neither torch's nor ours."""
    while frame is not None and frame is not outermost:
        if _is_users(frame):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def line_of_traceback(traceback: TracebackType | None) -> str | None:
    """Returns ``file:line`` of the innermost such call in a traceback."""
    line = None
    while traceback is not None:
        if _is_users(traceback.tb_frame):
            line = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return line


def line_of_function(function: Callable[..., Any]) -> str:
    """Returns ``file:line`` of a function's definition."""
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"
