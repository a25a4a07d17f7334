"""Calls as data: property tests draw them, print them in one line, and replay that line."""

import math
import zlib
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from support import Outcome, flat, outcome
from support.cases import base_shape, viewed

MODES = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


@dataclass(frozen=True)
class Data:
    """A tensor by its description."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    content: str = "normal"
    layout: str = "contiguous"
    device: str = "cpu"
    needs_grad: bool = False

    def tensor(self, rng: torch.Generator, exact: bool) -> Tensor:
        """The tensor, its values drawn from `rng`; `exact`: the same values in float64."""
        base = torch.randn(base_shape(self.layout, self.shape), generator=rng, dtype=torch.float64)
        base = altered(base.to(self.dtype), self.content)
        value = viewed(self.layout, base.double() if exact else base, self.shape).to(self.device)
        return value.requires_grad_(self.needs_grad)


@dataclass(frozen=True)
class Call:
    """A module's construction, what is done to it, and one forward and backward.

    Args:
        args, kwargs: of the constructor.
        input, hx, cx: of forward; hx is left out where None, and cx makes a pair of it.
        lengths: of the sequences, if they are packed; `input` is then the packed data.
        attributes: set after construction.
        weights: index of a weight -> how it is `altered`.
        frozen: indices of the weights that require no gradient.
        mode: one of `MODES`.
        upstream: the results for which gradients arrive.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    input: Data
    hx: Data | None = None
    cx: Data | None = None
    lengths: tuple[int, ...] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    weights: dict[int, str] = field(default_factory=dict)
    frozen: tuple[int, ...] = ()
    mode: str = "grad"
    upstream: tuple[str, ...] = ("output", "h_n", "c_n")

    @property
    def devices(self) -> set[str]:
        """Those of input, hx and the weights."""
        weights = {"meta"} & set(self.weights.values())
        return {data.device for data in self._data} | weights | {self.kwargs.get("device", "cpu")}

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Those of input, hx and the weights."""
        weights = {torch.complex128} if "complex" in self.weights.values() else set()
        return (
            {data.dtype for data in self._data}
            | weights
            | {self.kwargs.get("dtype", torch.float32)}
        )

    @property
    def fits_packing(self) -> bool:
        """Whether packed data has the rows that the lengths ask for."""
        return self.lengths is None or self.input.shape[:1] == (sum(self.lengths),)

    @property
    def _data(self) -> list[Data]:
        return [data for data in (self.input, self.hx, self.cx) if data is not None]


@dataclass
class Observation:
    """The observable effects of a call.

    Args:
        outcome: error or none, and warnings.
        facts: types, shapes, where gradients flow, the random state: all but values.
        contiguous: the results that are.
        values: results and gradients by name.
        scales: the largest element of each, of a gradient also under upstream gradients of other
            signs: one of few elements may come out small only because large terms cancel.
        nearest_to_kink: the relu pre-activation nearest to zero, over their root mean square.
    """

    outcome: Outcome = field(default_factory=lambda: Outcome(None, "", ()))
    facts: dict[str, Any] = field(default_factory=dict)
    contiguous: set[str] = field(default_factory=set)
    values: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    nearest_to_kink: float = math.inf


def observe(cls: type[nn.Module], call: Call, exact: bool = False) -> Observation:
    """Makes the call on a module of class `cls`; `exact`: with the same numbers, in float64."""
    seen = Observation()
    seen.outcome = outcome(lambda: _run(seen, cls, call, exact))
    return seen


def altered(value: Tensor, how: str) -> Tensor:
    """`value` with one property changed."""
    if how in ("nan", "inf", "-inf") and value.numel() and value.is_floating_point():
        value.view(-1)[-1] = float(how)
    elif how == "zeros":
        return value * 0
    elif how == "denormal" and value.is_floating_point():
        return value * (torch.finfo(value.dtype).smallest_normal / 64)
    elif how == "transposed" and value.dim() == 2:
        return value.t().contiguous().t()
    elif how == "wider":
        return torch.cat([value, value[..., :1]], -1)
    elif how == "complex":
        return value.to(torch.complex128)
    elif how == "meta":
        return value.to("meta")
    return value


def _run(seen: Observation, cls: type[nn.Module], call: Call, exact: bool) -> None:
    rng = torch.Generator().manual_seed(zlib.crc32(repr(call).encode()))
    torch.manual_seed(0)
    module = _module(cls, call, exact)
    x = call.input.tensor(rng, exact)
    arguments: list[Any] = [x if call.lengths is None else _packed(x, call.lengths)]
    leaves = {"input": x}
    if call.hx is not None:
        arguments.append(call.hx.tensor(rng, exact))
        leaves["hx"] = arguments[-1]
        if call.cx is not None:
            leaves["cx"] = call.cx.tensor(rng, exact)
            arguments[-1] = leaves["hx"], leaves["cx"]
    leaves |= dict(module.named_parameters())
    kinks = _Kinks()
    with MODES[call.mode](), kinks if exact else nullcontext():
        result = module(*arguments)
    seen.nearest_to_kink = kinks.nearest
    seen.facts["next random number"] = torch.rand(()).item()
    produced = _produced(seen, result)
    outputs = [t for name, t in produced.items() if name in call.upstream and t.requires_grad]
    upstream = [torch.randn(t.shape, generator=rng).to(t) for t in outputs]
    _keep(seen, produced)
    _keep(seen, _gradients(outputs, leaves, upstream))
    if exact:
        for _ in range(2):
            signed = [g * (2 * torch.randint_like(g, 2) - 1) for g in upstream]
            for name, grad in _gradients(outputs, leaves, signed).items():
                seen.scales[name] = max(seen.scales[name], largest(grad))


def _module(cls: type[nn.Module], call: Call, exact: bool) -> nn.Module:
    module = cls(*call.args, **call.kwargs)
    names = [name for name, _ in module.named_parameters()]
    for index, how in call.weights.items():
        name = names[index % len(names)]
        value = getattr(module, name)
        setattr(module, name, None if how == "none" else nn.Parameter(altered(value.detach(), how)))
    if exact:
        module.double()
    for index in call.frozen:
        weight = getattr(module, names[index % len(names)])
        if weight is not None:
            weight.requires_grad_(False)
    for name, value in call.attributes.items():
        setattr(module, name, value)
    return module


def _packed(data: Tensor, lengths: tuple[int, ...]) -> PackedSequence:
    """`data` as the packed data of sequences of these lengths."""
    padded = torch.zeros(max(lengths), len(lengths), 1)
    is_sorted = list(lengths) == sorted(lengths, reverse=True)
    _, *packing = pack_padded_sequence(padded, torch.tensor(lengths), enforce_sorted=is_sorted)
    return PackedSequence(data, *packing)


def _produced(seen: Observation, result: Any) -> dict[str, Tensor]:
    seen.facts["type"] = type(result)
    if type(result) is tuple and isinstance(result[0], PackedSequence):
        _, *packing = result[0]
        seen.facts["packing"] = [None if t is None else t.tolist() for t in packing]
    return dict(zip(("output", "h_n", "c_n"), flat(result), strict=False))


def _gradients(
    outputs: list[Tensor], leaves: dict[str, Tensor], upstream: list[Tensor]
) -> dict[str, Tensor]:
    wanted = {f"grad_{name}": leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if not outputs or not wanted:
        return {}
    grads = torch.autograd.grad(
        outputs, [*wanted.values()], upstream, retain_graph=True, allow_unused=True
    )
    return {name: g for name, g in zip(wanted, grads, strict=True) if g is not None}


def _keep(seen: Observation, tensors: dict[str, Tensor]) -> None:
    for name, t in tensors.items():
        facts = (type(t), t.shape, t.dtype, t.device, t.requires_grad, t.is_inference())
        seen.facts[name] = facts
        # A caller may view() a result; for a gradient contiguity is not promised.
        if t.is_contiguous() and not name.startswith("grad_"):
            seen.contiguous.add(name)
        if not t.is_meta:
            seen.values[name] = t.detach()
            seen.scales[name] = largest(t)


def largest(t: Tensor) -> float:
    """The largest finite magnitude, 0 where there is none."""
    finite = t.detach()[t.isfinite()].abs()
    return finite.max().item() if finite.numel() else 0.0


class _Kinks(TorchDispatchMode):
    """Watches the arguments of relu."""

    def __init__(self) -> None:
        super().__init__()
        self.nearest = math.inf

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.relu.default and args[0].numel():
            z = args[0].abs()
            # Exact zeros, of rows that are all zero, are the same in any precision.
            nearest = z.where(z > 0, math.inf).min() / z.square().mean().sqrt()
            self.nearest = min(self.nearest, nearest.item())
        return func(*args, **(kwargs or {}))
