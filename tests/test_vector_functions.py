"""The vector functions of cell programs, at every ISA level.

`vector_functions.cpp` applies them to arrays; it is compiled when a test first asks for it.
"""

import ctypes
import functools

import mpmath
import numpy as np
import pytest
import torch
from support import ISA_LEVELS, same_bits
from support.compile import ROOT, compiler, digest, link
from support.floats import all_classes, from_bits, ulp

FLAGS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
}
LEVELS = [level for level in ISA_LEVELS if level in FLAGS]
DTYPES = (torch.float32, torch.float64)

# The error of two or three roundings and a nearly exact polynomial; csrc/cpu/functions.inl has the
# measured errors.
MOST_ULPS = 2

APPROXIMATED = {
    "cos": mpmath.cos,
    "erf": mpmath.erf,
    "exp": mpmath.exp,
    "expm1": mpmath.expm1,
    "log": mpmath.log,
    "log1p": mpmath.log1p,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "sin": mpmath.sin,
    "tanh": mpmath.tanh,
}
OPERANDS = {
    **dict.fromkeys(("abs", "ceil", "floor", "neg", "reciprocal", "round", "rsqrt"), 1),
    **dict.fromkeys(("sign", "sqrt", "trunc"), 1),
    **dict.fromkeys(("eq", "le", "lt", "maximum", "minimum", "ne"), 2),
    "where": 3,
}


@functools.cache
def library(level):
    source, csrc = ROOT / "tests" / "vector_functions.cpp", ROOT / "csrc"
    # As setup.py compiles the kernels.
    flags = ["-std=c++20", "-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    flags += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", *FLAGS[level]]
    sources = [source, *csrc.glob("c*/*.h"), *csrc.glob("cpu/*.inl")]
    version = digest(sources, " ".join([compiler(), *flags]))
    result = ROOT / "build" / f"vector_functions-{level}-{version}.so"
    result.parent.mkdir(exist_ok=True)
    return ctypes.CDLL(str(link([source], result, [*flags, f"-I{csrc}"])))


def apply(level, name, *operands):
    a, b, c = (*operands, *operands, *operands)[:3]
    out = torch.empty_like(a)
    function = getattr(library(level), "apply_float" if a.dtype.itemsize == 4 else "apply_double")
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (a, b, c, out)]
    function(name.encode(), *pointers, ctypes.c_int64(a.numel()))
    return out


def torch_function(name, *operands):
    a, *others = operands
    if name == "where":
        return torch.where(a != 0, *others)
    if name == "sqrt":  # torch's is not rounded correctly on every machine
        return torch.from_numpy(np.sqrt(a.numpy()))
    return getattr(torch, name)(a, *others).to(a.dtype)


def same_values(a, b):
    """NaN in the same places, and the same bits elsewhere."""
    is_number = ~b.isnan()
    return torch.equal(~a.isnan(), is_number) and same_bits(a[is_number], b[is_number])


@functools.lru_cache(maxsize=1)  # one function's levels follow each other
def exact_floats(name, first, step):
    """Every `step`-th float32 from the bits `first` on, torch's float64 function of it, its ulp."""
    x = from_bits(torch.arange(first, 1 << 32, step))
    exact = torch_function(name, x.double())
    return x, exact, ulp(exact)


def check_floats(level, name, first, step):
    """float32 against torch's float64: within MOST_ULPS, and the same zeros, infinities and NaN."""
    x, exact, unit = exact_floats(name, first, step)
    actual, rounded = apply(level, name, x), exact.float()
    special = ~rounded.isfinite() | (exact == 0)
    assert same_values(actual[special], rounded[special])
    error = ((actual.double() - exact).abs_() / unit).masked_fill_(special, 0)
    worst = int(error.argmax())
    assert error[worst] <= MOST_ULPS, f"{x[worst].item()!r} gives {actual[worst].item()!r}"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", APPROXIMATED)
def test_float32_is_within_two_ulp_of_float64(name, level):
    check_floats(level, name, first=0, step=997)


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", APPROXIMATED)
def test_float32_is_within_two_ulp_of_float64_in_more_places(name, level):
    for first in range(0, 970, 97):
        check_floats(level, name, first, step=970)


def hard_doubles():
    """All exponents, and where the functions change: 0, ±1, multiples of π/2, limits of exp."""
    generator = torch.Generator().manual_seed(3)

    def uniform(count, low, high):
        return torch.empty(count, dtype=torch.float64).uniform_(low, high, generator=generator)

    n = torch.arange(1, 40, dtype=torch.float64)
    tiny = torch.exp2(-uniform(40, 1, 54))
    magnitudes = torch.cat(
        [
            torch.exp2(uniform(200, -1074, 1024)),
            torch.exp2(uniform(200, -60, 10)),
            uniform(300, 0, 4),
            uniform(50, 690, 760),
            uniform(50, 9e4, 1.1e5),
            1 + tiny,
            1 - tiny,
            n * torch.pi / 2,
            (1591 * n).round() * torch.pi / 2,  # up to 1e5, where the reduction ends
            torch.tensor([0.5**0.5, 2**0.5, 0.625, 0.9, 6.0, 22.0, 38.0], dtype=torch.float64),
            # Without their corrections expm1 and sigmoid are more than 2 ulp off here.
            torch.tensor(
                [0.35602232465250777, 0.36439492455575573, 2.7357175201376136, 2.7552424458938756],
                dtype=torch.float64,
            ),
        ]
    )
    return torch.cat([magnitudes, -magnitudes])


@functools.cache
def exact(name):
    """The function of `hard_doubles()`; None where it has no finite value in float64."""

    def evaluate(x):
        if name.startswith("log") and x <= (-1 if name == "log1p" else 0):
            return None
        y = APPROXIMATED[name](mpmath.mpf(x))
        return y if abs(y) < mpmath.mpf(2) ** 1024 * (1 - mpmath.mpf(2) ** -54) else None

    with mpmath.workprec(200):
        return [evaluate(x) for x in hard_doubles().tolist()]


@pytest.mark.parametrize("name", APPROXIMATED)
@pytest.mark.parametrize("level", LEVELS)
def test_float64_is_within_two_ulp_of_mpmath(name, level):
    x = hard_doubles()
    actual, expected = apply(level, name, x), torch_function(name, x)
    with mpmath.workprec(200):
        rows = zip(x.tolist(), actual.tolist(), exact(name), expected.tolist(), strict=True)
        for value, y, want, from_torch in rows:
            if want is None:
                assert str(y) == str(from_torch), value
                continue
            _, exponent = mpmath.frexp(want)
            unit = mpmath.ldexp(1, max(int(exponent), -1021) - 53)
            assert abs(mpmath.mpf(y) - want) <= MOST_ULPS * unit, value


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*APPROXIMATED, "rsqrt"])
@pytest.mark.parametrize("level", LEVELS)
def test_special_values_are_those_of_torch(name, level, dtype):
    info = torch.finfo(dtype)
    positive = [0.0, info.smallest_normal, info.max, torch.inf, torch.nan, 1.0]
    x = torch.tensor([*positive, *(-p for p in positive)], dtype=dtype)
    actual, expected = apply(level, name, x), torch_function(name, x)
    special = ~expected.isfinite() | (expected == 0)
    if name in ("sin", "cos"):
        special &= x.abs() != info.max
    if name == "erf":  # torch 2.10's is 0 there on ARM
        special &= x.abs() != info.smallest_normal
    assert same_values(actual[special], expected[special])


@pytest.mark.filterwarnings("ignore:invalid value encountered in sqrt")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("level", LEVELS)
def test_simple_functions_round_as_torch(name, level, dtype):
    x = torch.cat([all_classes(), torch.arange(-40, 41) / 4]).to(dtype)
    others = [x[torch.randperm(len(x))] for _ in range(2)]
    others[0][::3] = x[::3]  # equal ones
    operands = [x, *others][: OPERANDS[name]]
    actual, expected = apply(level, name, *operands), torch_function(name, *operands)
    assert same_values(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", APPROXIMATED)
@pytest.mark.parametrize("level", LEVELS)
def test_every_lane_has_the_same_bits(name, level, dtype):
    """Alone, in a vector and in its tail, next to lanes that take other branches."""
    x = torch.cat([all_classes()[::97], torch.linspace(-2e5, 2e5, 101)]).to(dtype)
    x = x[torch.randperm(len(x))]
    x = x.nan_to_num(1.0)
    alone = torch.cat([apply(level, name, value) for value in x.split(1)])
    for shift in range(17):
        assert same_bits(apply(level, name, x[shift:].contiguous()), alone[shift:])
