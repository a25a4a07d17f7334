"""The ISA level, chosen by machine, RNN_EXT_ISA or set_isa; and what build_info says."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ISA_LEVELS, using_isa

import rnn_ext
from rnn_ext import _C


def test_levels_go_from_generic_to_the_best_of_the_machine():
    compiled = rnn_ext.build_info()["isa_compiled"]
    assert ISA_LEVELS[0] == "generic"
    assert list(ISA_LEVELS) == [level for level in compiled if level in ISA_LEVELS]


def test_the_best_level_is_chosen_unless_a_variable_caps_it():
    result = in_fresh_python(None)
    assert (result.returncode, result.stdout.strip()) == (0, ISA_LEVELS[-1]), result.stderr


@pytest.mark.parametrize("name", ISA_LEVELS)
def test_set_isa_takes_effect(name):
    with using_isa(name):
        assert _C.isa() == name
        assert rnn_ext.build_info()["isa"] == name


@pytest.mark.parametrize("name", ["", "avx1", "AVX2", "neon "])
def test_unknown_level_is_refused_with_the_valid_ones_and_changes_nothing(name):
    before = _C.isa()
    with pytest.raises(ValueError, match="is not an ISA level") as error:
        _C.set_isa(name)
    for level in ISA_LEVELS:
        assert level in str(error.value)
    assert _C.isa() == before


def in_fresh_python(value):
    """Imports the package with RNN_EXT_ISA set, or not, and prints the level chosen."""
    others = {name: text for name, text in os.environ.items() if name != "RNN_EXT_ISA"}
    return subprocess.run(
        [sys.executable, "-c", "import rnn_ext; print(rnn_ext.build_info()['isa'])"],
        env=others if value is None else {**others, "RNN_EXT_ISA": value},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_environment_variable_caps_the_level():
    result = in_fresh_python("generic")
    assert (result.returncode, result.stdout.strip()) == (0, "generic"), result.stderr
    # A cap above the machine's levels leaves its best one, which is the last.
    result = in_fresh_python(ISA_LEVELS[-1])
    assert (result.returncode, result.stdout.strip()) == (0, ISA_LEVELS[-1]), result.stderr


def test_wrong_environment_variable_is_an_error_that_lists_the_valid_values():
    result = in_fresh_python("sse9")
    assert result.returncode != 0
    assert "RNN_EXT_ISA" in result.stderr
    assert "sse9" in result.stderr
    for level in rnn_ext.build_info()["isa_compiled"]:
        assert level in result.stderr


def test_build_info_has_the_promised_keys():
    info = rnn_ext.build_info()
    assert set(info) >= {
        "version",
        "compiler",
        "isa_compiled",
        "isa",
        "openmp",
        "cuda_archs",
        "torch_built",
        "torch_running",
    }
    assert info["version"] == rnn_ext.__version__
    assert info["torch_running"] == torch.__version__
    assert isinstance(info["openmp"], bool)
    assert info["compiler"]
    assert info["torch_built"]


NEEDS = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512dq", "avx512bw", "avx512vl"},
    "avx512_bf16": {"avx512_bf16"},
}


@pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"),
    reason="Linux lists the features of x86-64 processors",
)
def test_the_levels_are_those_that_linux_lists_the_features_of():
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    assert flags is not None
    features = set(flags.group(1).split())
    levels, needed = ["generic"], set()
    for name, needs in NEEDS.items():
        needed |= needs
        if needed <= features:
            levels.append(name)
    assert _C.isa_available() == levels
    # The answer does not come from the compiler's run-time library, which some compilers lack.
    assert b"__cpu_model" not in Path(_C.__file__).read_bytes()
