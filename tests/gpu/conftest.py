"""Fixtures of the tests on a GPU."""

import pytest
import torch

from rnn_ext._core import cuda


@pytest.fixture(autouse=True)
def ours_without_tf32(monkeypatch):
    """Every call takes our kernels, and matrix products have full precision."""
    monkeypatch.setattr(cuda, "setting", "ours")
    products = torch.backends.cuda.matmul
    allowed, products.allow_tf32 = products.allow_tf32, False
    # torch's own test helpers, once imported, let no one set cuDNN's flags in another way.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    products.allow_tf32 = allowed
