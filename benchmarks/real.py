"""The calls in ``configurations.tsv``, which names their sources in public projects."""

import csv
from pathlib import Path

import msgspec
import torch

from .cases import Case

__all__ = ["real_cases"]


def real_cases(dtype: torch.dtype = torch.float32) -> list[Case]:
    """Returns every row of the file, in its order."""
    text = Path(__file__).with_name("configurations.tsv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows = [row | {"dtype": dtype} for row in csv.DictReader(lines, delimiter="\t")]
    return msgspec.convert(rows, list[Case], strict=False, dec_hook=lambda _, value: value)
