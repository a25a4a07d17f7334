"""The cells that come with the package, by their programs, against a plain loop with autograd."""

import pytest
from support.programs import assert_program_equals_loop

import rnn_ext
from rnn_ext import cells

CELLS = [name for name in cells.__all__ if isinstance(getattr(cells, name), rnn_ext.Cell)]


@pytest.mark.parametrize("name", CELLS)
def test_program_equals_plain_loop(name):
    assert_program_equals_loop(getattr(cells, name))
