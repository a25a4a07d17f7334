"""The operations that a cell can have: torch's, and their derivatives, in those of the program.

Each rule takes the arguments of the aten operation of its name, with a ``Node`` for each tensor.
The derivatives are torch's own, written as a factor of the gradient where possible, since backward
can save the factor instead of its operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .graph import Node

__all__ = ["RULES"]

RULES: dict[str, Callable[..., Any]] = {}


def _rule(function: Callable[..., Any]) -> Callable[..., Any]:
    RULES[function.__name__] = function
    return function


def _same(*names: str) -> None:
    """Adds rules for operations that the program has under torch's names."""

    def rule(name: str) -> Callable[..., Node]:
        return lambda x: x.graph.apply(name, x)

    for name in names:
        RULES[name] = rule(name)


_same("neg", "abs", "sign", "floor", "ceil", "round", "trunc", "sqrt", "rsqrt", "reciprocal")
_same("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf")


def _of_either(op: str) -> Callable[[Node | float, Node | float], Node]:
    def apply(a: Node | float, b: Node | float) -> Node:
        node = a if isinstance(a, Node) else b
        assert isinstance(node, Node)
        return node.graph.apply(op, a, b)

    return apply


for _name in ("mul", "maximum", "minimum", "lt", "le", "eq", "ne"):
    RULES[_name] = _of_either(_name)

_mul, _maximum, _minimum = RULES["mul"], RULES["maximum"], RULES["minimum"]
_lt, _le, _eq, _ne = RULES["lt"], RULES["le"], RULES["eq"], RULES["ne"]
_abs, _exp, _expm1, _log, _log1p = (RULES[n] for n in ("abs", "exp", "expm1", "log", "log1p"))
_tanh, _sigmoid, _erf, _sqrt, _sign = (RULES[n] for n in ("tanh", "sigmoid", "erf", "sqrt", "sign"))

RULES["gt"] = _gt = lambda a, b: _lt(b, a)
RULES["ge"] = _ge = lambda a, b: _le(b, a)
RULES["sgn"] = _sign


def _select(mask: Node, a: Node | float, b: Node | float) -> Node:
    return mask.graph.apply("where", mask, a, b)


# Masks are 0 or 1 ---------------------------------------------------------------------------------


def _is_mask(x: Node) -> bool:
    if x.op in ("lt", "le", "eq", "ne"):
        return True
    negated = x.op == "affine" and x.data == (-1.0, 1.0)
    return (negated or x.op in ("mul", "maximum")) and all(map(_is_mask, x.args))


def _mask(x: Node) -> Node:
    """Returns a mask of the numbers that are not zero, which torch treats as True."""
    return x if _is_mask(x) else _ne(x, 0.0)


@_rule
def logical_not(x: Node) -> Node:
    return 1 - _mask(x)


@_rule
def logical_and(a: Node, b: Node) -> Node:
    return _mask(a) * _mask(b)


@_rule
def logical_or(a: Node, b: Node) -> Node:
    return _maximum(_mask(a), _mask(b))


@_rule
def logical_xor(a: Node, b: Node) -> Node:
    return _ne(_mask(a), _mask(b))


@_rule
def where(mask: Node, a: Node | float, b: Node | float) -> Node:
    return mask.graph.apply("where", mask, a, b)


@_rule
def masked_fill(x: Node, mask: Node, value: Node | float) -> Node:
    return where(mask, value, x)


@_rule
def isnan(x: Node) -> Node:
    return _ne(x, x)


@_rule
def heaviside(x: Node, at_zero: Node | float) -> Node:
    return where(_eq(x, 0.0), at_zero, _gt(x, 0.0))


# Arithmetic ---------------------------------------------------------------------------------------


@_rule
def add(a: Node, b: Node | float, alpha: float = 1) -> Node:
    return a + b * alpha


@_rule
def sub(a: Node, b: Node | float, alpha: float = 1) -> Node:
    return a - b * alpha


@_rule
def rsub(a: Node, b: Node | float, alpha: float = 1) -> Node:
    return b - a * alpha


@_rule
def div(a: Node | float, b: Node | float) -> Node:
    return a / b  # type: ignore[return-value]


@_rule
def addcmul(x: Node, a: Node, b: Node, value: float = 1) -> Node:
    return x + a * b * value


@_rule
def lerp(a: Node, b: Node, weight: Node | float) -> Node:
    return a + (b - a) * weight


@_rule
def pow(x: Node | float, exponent: Node | float) -> Node:
    """Returns a power with a constant base or a constant exponent; NotImplemented for others."""
    if isinstance(exponent, Node) and exponent.constant is not None:
        exponent = exponent.constant
    if not isinstance(x, Node) and isinstance(exponent, Node) and x > 0:
        return _exp(exponent * math.log(x))
    if not isinstance(x, Node) or isinstance(exponent, Node):
        return NotImplemented
    if exponent < 0:
        root = exponent == -0.5
        return x.graph.apply("rsqrt", x) if root else 1 / pow(x, -exponent)
    if exponent == 0.5:
        return _sqrt(x)
    if exponent != int(exponent):
        return _exp(_log(x) * exponent)
    if exponent == 0:
        return x.graph.constant(1)
    half = pow(x, exponent // 2) if exponent > 1 else None
    square = x if half is None else half * half
    return square * x if half is not None and exponent % 2 else square


@_rule
def clamp(x: Node, min: Node | float | None = None, max: Node | float | None = None) -> Node:
    x = x if min is None else _maximum(x, min)
    return x if max is None else _minimum(x, max)


RULES["clamp_min"] = lambda x, min: clamp(x, min)
RULES["clamp_max"] = lambda x, max: clamp(x, None, max)


# Activations and their derivatives ----------------------------------------------------------------


@_rule
def tanh_backward(grad: Node, y: Node) -> Node:
    return grad * (1 - y * y)


@_rule
def sigmoid_backward(grad: Node, y: Node) -> Node:
    return grad * (y * (1 - y))


@_rule
def relu(x: Node) -> Node:
    return _maximum(x, 0.0)


@_rule
def threshold(x: Node, threshold: float, value: float) -> Node:
    return where(_le(x, threshold), value, x)


@_rule
def threshold_backward(grad: Node, x: Node, threshold: float) -> Node:
    return where(_le(x, threshold), 0.0, grad)


@_rule
def leaky_relu(x: Node, slope: float = 0.01) -> Node:
    return where(_gt(x, 0.0), x, x * slope)


@_rule
def leaky_relu_backward(grad: Node, x: Node, slope: float, is_result: bool) -> Node:
    return grad * where(_gt(x, 0.0), x.graph.constant(1), slope)


@_rule
def elu(x: Node, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Node:
    return where(_gt(x, 0.0), x * scale, _expm1(x * input_scale) * (alpha * scale))


RULES["celu"] = lambda x, alpha=1.0: elu(x, alpha, 1.0, 1 / alpha)


@_rule
def elu_backward(
    grad: Node, alpha: float, scale: float, input_scale: float, is_result: bool, x: Node
) -> Node:
    below = x + alpha * scale if is_result else _exp(x * input_scale) * (alpha * scale)
    return grad * where(_gt(x, 0.0), scale, below * input_scale)


@_rule
def softplus(x: Node, beta: float = 1, threshold: float = 20) -> Node:
    return where(_gt(x * beta, threshold), x, _log1p(_exp(x * beta)) / beta)


@_rule
def softplus_backward(grad: Node, x: Node, beta: float, threshold: float) -> Node:
    return grad * where(_gt(x * beta, threshold), 1.0, _sigmoid(x * beta))


@_rule
def silu(x: Node) -> Node:
    return x * _sigmoid(x)


@_rule
def silu_backward(grad: Node, x: Node) -> Node:
    y = _sigmoid(x)
    return grad * (y + x * (y * (1 - y)))


_TANH_GELU = math.sqrt(2 / math.pi), 0.044715


@_rule
def gelu(x: Node, approximate: str = "none") -> Node:
    if approximate == "none":
        return x * (_erf(x * math.sqrt(0.5)) * 0.5 + 0.5)
    scale, cubic = _TANH_GELU
    return x * (_tanh(x * (x * x * (cubic * scale) + scale)) * 0.5 + 0.5)


@_rule
def gelu_backward(grad: Node, x: Node, approximate: str = "none") -> Node:
    square = x * x
    if approximate == "none":
        density = _exp(square * -0.5) * (1 / math.sqrt(2 * math.pi))
        return grad * (_erf(x * math.sqrt(0.5)) * 0.5 + 0.5 + x * density)
    scale, cubic = _TANH_GELU
    y = _tanh(x * (square * (cubic * scale) + scale))
    slope = (1 - y * y) * (square * (3 * cubic * scale) + scale)
    return grad * (y * 0.5 + 0.5 + x * slope * 0.5)


@_rule
def hardtanh(x: Node, low: float = -1, high: float = 1) -> Node:
    return clamp(x, low, high)


@_rule
def hardtanh_backward(grad: Node, x: Node, low: float, high: float) -> Node:
    return where(logical_and(_gt(x, low), _lt(x, high)), grad, 0.0)


@_rule
def hardsigmoid(x: Node) -> Node:
    return clamp(x * (1 / 6) + 0.5, 0.0, 1.0)


@_rule
def hardsigmoid_backward(grad: Node, x: Node) -> Node:
    return where(logical_and(_gt(x, -3.0), _lt(x, 3.0)), grad * (1 / 6), 0.0)


@_rule
def log_sigmoid_forward(x: Node) -> tuple[Node, Node]:
    # The second is torch's buffer.
    small = _exp(-_abs(x))
    return _minimum(x, 0.0) - _log1p(small), small


@_rule
def log_sigmoid_backward(grad: Node, x: Node, buffer: Node) -> Node:
    return grad * _sigmoid(-x)
