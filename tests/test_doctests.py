"""The examples in docstrings run and print what they say."""

import doctest
from importlib import import_module

import pytest
import torch
from torch import nn

import rnn_ext


@pytest.mark.parametrize("name", ["modules", "swap", "onnx"])
def test_examples_run(name, tmp_path, monkeypatch):
    if name == "onnx":
        pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    module = import_module(f"rnn_ext.{name}")
    names = {"rnn_ext": rnn_ext, "torch": torch, "nn": nn}
    names |= {"model": rnn_ext.RNN(3, 4), "x": torch.randn(5, 2, 3)}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0
