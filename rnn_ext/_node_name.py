"""The name of the module that holds the autograd node in C++, which ``setup.py`` reads as well."""

import re

__all__ = ["node_name"]


def node_name(torch_version: str) -> str:
    """Returns the module's name for a torch release; CPU and CUDA builds of one share it."""
    return "_node_" + re.sub(r"\W", "_", torch_version.partition("+")[0])
