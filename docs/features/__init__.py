"""Features of torch, each as a function that uses it with a layer or cell of torch's or ours.

`what_works.py` makes a page of them, with a section for each file, in this order.
"""

from . import graphs, derivatives, modules, tensors, libraries  # noqa: F401, I001
from .cases import CASES, KINDS, OURS, TORCHS, Case, Modules

__all__ = ["CASES", "KINDS", "OURS", "TORCHS", "Case", "Modules"]
