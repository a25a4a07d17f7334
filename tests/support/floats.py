"""float32 values by their bits, and distances in units in the last place."""

import torch
from torch import Tensor


def from_bits(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


def all_classes() -> Tensor:
    """Every sign and exponent with edge and random fractions; zeros, denormals, infinity, NaN."""
    signs = torch.arange(2).view(-1, 1, 1) << 31
    exponents = torch.arange(256).view(1, -1, 1) << 23
    edges = torch.tensor([0, 1, 2, 3, 0x200000, 0x3FFFFF, 0x400000, 0x7FFFFE, 0x7FFFFF])
    fractions = torch.cat([edges, torch.randint(1 << 23, (120,))])
    return from_bits((signs | exponents | fractions).flatten())


def ulp(exact: Tensor) -> Tensor:
    """One unit in the last place of float32 at each value of `exact`, a float64 tensor."""
    _, exponent = torch.frexp(exact.abs().clamp(min=2.0**-126))
    return torch.ldexp(torch.ones_like(exact), exponent.double() - 24)


def ulps(actual: Tensor, exact: Tensor) -> Tensor:
    """|actual - exact| in units in the last place of float32 at `exact`, a float64 tensor."""
    return (actual.double() - exact).abs() / ulp(exact)
