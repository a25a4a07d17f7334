"""The cells that come with the package, by their programs, against a plain loop with autograd."""

import pytest
from programs import assert_program_equals_loop

from rnn_ext._cells import definitions as cells
from rnn_ext._cells.cell import Cell

CELLS = [name for name in cells.__all__ if isinstance(getattr(cells, name), Cell)]


@pytest.mark.parametrize("name", CELLS)
def test_program_equals_plain_loop(name: str) -> None:
    assert_program_equals_loop(getattr(cells, name))
