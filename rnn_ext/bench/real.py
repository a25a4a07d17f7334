"""The calls in ``configurations.tsv``: shapes that public projects really use."""

import csv
from importlib import resources

import torch

from .cases import Case

__all__ = ["real_cases"]

_YES = {"yes": True, "no": False}


def real_cases(dtype: torch.dtype = torch.float32) -> list[Case]:
    """Every row of the file, in its order."""
    text = resources.files(__package__).joinpath("configurations.tsv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [_case(row, dtype) for row in csv.DictReader(lines, delimiter="\t")]


def _case(row: dict[str, str], dtype: torch.dtype) -> Case:
    values = {key: value for key, value in row.items() if key != "notes"}
    numbers = ("seq_len", "batch_size", "input_size", "hidden_size", "num_layers")
    switches = ("batch_first", "bidirectional", "bias")
    return Case.from_dict(
        values
        | {key: int(values[key]) for key in numbers}
        | {key: _YES[values[key]] for key in switches}
        | {"dropout": float(values["dropout"]), "dtype": str(dtype).removeprefix("torch.")}
    )
