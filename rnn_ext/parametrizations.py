"""Constraints on the tensors of a module, for ``torch.nn.utils.parametrize``.

The constraint holds after every step of an optimizer::

    register_parametrization(layer, "weight_hh_l0", rnn_ext.parametrizations.Dale(signs))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Dale", "FixedZeros", "Interval", "NoSelfConnection"]


class Dale(nn.Module):
    """Makes every unit excitatory or inhibitory (Dale's law; Song, Yang and Wang, 2016).

    The weight is ``|original| * signs``: column j of a recurrent weight has the sign of unit j.

    Args:
        signs: 1 (excitatory) or -1 (inhibitory) for each unit, ``(H,)``.

    Raises:
        ValueError: signs has other values.
    """

    signs: Tensor

    def __init__(self, signs: Tensor) -> None:
        super().__init__()
        if signs.dim() != 1 or not (signs.abs() == 1).all():
            raise ValueError("signs must be 1 or -1 for each unit, of shape (H,)")
        self.register_buffer("signs", signs)

    def forward(self, original: Tensor) -> Tensor:
        """Returns the weight ``(…, H)``."""
        return original.abs() * self.signs.to(original.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Returns an original whose weight has the absolute values of ``weight``."""
        return weight.abs()


class FixedZeros(nn.Module):
    """Keeps chosen elements of a weight at zero.

    Args:
        mask: 0 or False where the weight stays 0; of the weight's shape.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.bool())

    def forward(self, original: Tensor) -> Tensor:
        """Returns the weight, of the mask's shape."""
        return original * self.mask.to(original.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Returns ``weight``."""
        return weight


class NoSelfConnection(nn.Module):
    """Keeps the diagonal of a recurrent weight at zero, for each gate."""

    def forward(self, original: Tensor) -> Tensor:
        """Returns the weight ``(G·H, H)``."""
        rows, columns = original.shape
        diagonal = torch.eye(columns, dtype=original.dtype, device=original.device)
        return original * (1 - diagonal.repeat(rows // columns, 1))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Returns ``weight``."""
        return weight


class Interval(nn.Module):
    """Keeps values between two limits: ``low + (high - low) * sigmoid(original)``.

    Args:
        low, high: the limits, both exclusive.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, original: Tensor) -> Tensor:
        """Returns the values, of any shape."""
        return self.low + (self.high - self.low) * torch.sigmoid(original)

    def right_inverse(self, value: Tensor) -> Tensor:
        """Returns an original whose value is ``value``, or close to it near a limit."""
        share = (value - self.low) / (self.high - self.low)
        return torch.logit(share, eps=1e-4)

    def extra_repr(self) -> str:
        """Returns the limits."""
        return f"{self.low}, {self.high}"
