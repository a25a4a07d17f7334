"""The name of the module with the autograd node in C++, for the package and for ``setup.py``."""

import re

__all__ = ["node_name"]


def node_name(torch_version: str) -> str:
    """Returns the module's name for a torch release; CPU and CUDA builds of one share it."""
    return "_node_" + re.sub(r"\W", "_", torch_version.partition("+")[0])
