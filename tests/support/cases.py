"""Cases of the parity grid: what varies, a covering design over it, and the tensors of a case."""

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from support import KINDS, MORE_THREADS_THAN_CORES, SIZES, flat


@dataclass(frozen=True)
class Case:
    """One call: its sizes, options, memory layouts and the gradients that arrive."""

    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    kind: str = "RNN"
    nonlinearity: str = "tanh"
    bias: bool = True
    dtype: torch.dtype = torch.float32
    form: str = "batched"
    batch_first: bool = False
    input_layout: str = "contiguous"
    hx_layout: str = "contiguous"
    weight_layout: str = "contiguous"
    upstream: str = "both"
    threads: str = "1"

    def __str__(self) -> str:
        """The id that pytest prints, and that `-k` replays."""
        return "-".join(
            [
                f"T{self.seq_len}",
                f"B{self.batch}",
                f"I{self.input_size}",
                f"H{self.hidden_size}",
                f"L{self.num_layers}",
                "bi" if self.bidirectional else "uni",
                self.nonlinearity if self.kind == "RNN" else self.kind,
                "bias" if self.bias else "nobias",
                str(self.dtype).removeprefix("torch."),
                self.form + ("_first" if self.batch_first else ""),
                f"x_{self.input_layout}",
                f"hx_{self.hx_layout}",
                f"w_{self.weight_layout}",
                f"g_{self.upstream}",
                f"{self.threads}threads",
            ]
        )

    @property
    def thread_count(self) -> int:
        return MORE_THREADS_THAN_CORES if self.threads == "many" else int(self.threads)

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def is_smooth(self) -> bool:
        return self.nonlinearity == "tanh"

    @property
    def states(self) -> tuple[str, ...]:
        return KINDS[self.kind]

    def module(self, library: Any) -> nn.Module:
        """The layer of `library` (`rnn_ext` or `torch.nn`), weights not yet set."""
        options = {"nonlinearity": self.nonlinearity} if self.kind == "RNN" else {}
        module: nn.Module = getattr(library, self.kind)(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            dtype=self.dtype,
            **options,
        )
        return module


FACTORS: Mapping[str, tuple[Any, ...]] = {
    "seq_len": (1, 2, 3, 7, 17, 33),
    "batch": SIZES,
    "input_size": SIZES,
    "hidden_size": SIZES,
    "num_layers": (1, 2, 3),
    "bidirectional": (False, True),
    "nonlinearity": ("tanh", "relu"),
    "bias": (True, False),
    "dtype": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "form": ("batched", "unbatched", "packed", "packed_unsorted"),
    "batch_first": (False, True),
    "input_layout": ("contiguous", "transposed", "strided", "sliced", "expanded"),
    "hx_layout": ("none", "contiguous", "transposed", "expanded"),
    "weight_layout": ("contiguous", "transposed"),
    "upstream": ("both", "output", "h_n", "sum", "transposed", "strided"),
    "threads": ("1", "2", "many"),
}

# Keeps the slowest case near 0.1 s in nn.RNN, and relu cases so small that for some seed no
# pre-activation is near the kink (see Problem.clear_of_kink).
MAX_STATES = 100_000
MAX_PRODUCTS = 40_000_000


def _feasible(choice: Mapping[str, Any]) -> bool:
    """Whether the factors chosen so far, with the others at their smallest, are a sensible case."""
    if choice.get("form") == "unbatched" and choice.get("batch", 1) != 1:
        return False
    hidden_size, directions = choice.get("hidden_size", 1), 1 + choice.get("bidirectional", False)
    states = choice.get("seq_len", 1) * choice.get("batch", 1) * hidden_size * directions
    states *= choice.get("num_layers", 1)
    return (
        states <= MAX_STATES
        and states * (choice.get("input_size", 1) + hidden_size) <= MAX_PRODUCTS
    )


def covering_design(seed: int) -> Iterator[Case]:
    """Cases in which every feasible pair of values of any two factors occurs together.

    Those of RNN are a design of their own, which has no factor "kind"; GRU and LSTM share one.
    """
    yield from _design(seed, FACTORS)
    gated = {name: values for name, values in FACTORS.items() if name != "nonlinearity"}
    yield from _design(seed, gated | {"kind": ("GRU", "LSTM")})


def _design(seed: int, factors: Mapping[str, tuple[Any, ...]]) -> Iterator[Case]:
    """Cases in which every feasible pair of values of any two of these factors occurs together.

    Greedy: each case starts from a pair not yet covered, and takes for every further factor the
    value that covers most new pairs.
    """
    rng = random.Random(seed)
    items = [(name, value) for name, values in factors.items() for value in values]
    missing = {
        frozenset(pair)
        for pair in combinations(items, 2)
        if pair[0][0] != pair[1][0] and _feasible(dict(pair))
    }
    queue = sorted(missing, key=lambda pair: sorted(map(repr, pair)))
    rng.shuffle(queue)
    for first in queue:
        if first not in missing:
            continue
        choice = dict(first)
        rest = [name for name in factors if name not in choice]
        rng.shuffle(rest)
        for name in rest:
            values = [v for v in factors[name] if _feasible({**choice, name: v})]
            rng.shuffle(values)
            choice[name] = max(
                values,
                key=lambda v: sum(frozenset({(name, v), old}) in missing for old in choice.items()),
            )
        missing -= {frozenset(pair) for pair in combinations(choice.items(), 2)}
        yield Case(**choice)


def base_shape(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the base from which `viewed` makes a tensor of shape `shape`."""
    if layout == "transposed":
        return shape[::-1]
    if layout == "strided":
        return (*shape[:-1], 2 * shape[-1])
    if layout == "sliced":
        return tuple(n + 1 for n in shape)
    if layout == "expanded":
        return (*shape[:-2], 1, shape[-1])
    if layout == "sum":
        return (1,) * len(shape)
    return shape


def viewed(layout: str, base: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A view of `base` with shape `shape` and the memory layout `layout`."""
    if layout == "transposed":
        return base.permute(*reversed(range(base.dim())))
    if layout == "strided":
        return base[..., ::2]
    if layout == "sliced":
        return base[tuple(slice(1, None) for _ in shape)]
    return base.expand(shape)


@dataclass
class Problem:
    """The tensors of a case. `leaves` are those that gradients are computed for."""

    case: Case
    leaves: dict[str, Tensor]
    upstream: dict[str, Tensor]
    packing: PackedSequence | None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, case: Case, attempt: int = 0) -> "Problem":
        """The case's values: the same on every run and machine."""
        rng = torch.Generator().manual_seed(zlib.crc32(f"{case}/{attempt}".encode()))
        packing = _packing(case, rng)
        shapes = _shapes(case, packing)

        def draw(layout: str, shape: tuple[int, ...]) -> Tensor:
            return torch.randn(base_shape(layout, shape), generator=rng, dtype=case.dtype)

        leaves = {"input": draw(case.input_layout, shapes["input"])}
        if case.hx_layout != "none":
            for state in case.states:
                leaves[f"{state}x"] = draw(case.hx_layout, shapes["hx"])
        for name, parameter in case.module(nn).named_parameters():
            # As torch initializes it, but smaller where the input is wider than the state: most
            # units would saturate, and a gradient come from one or two of them.
            bound = max(case.hidden_size, parameter.shape[-1]) ** -0.5
            value = torch.rand(parameter.shape, generator=rng, dtype=case.dtype)
            leaves[name] = (2 * value - 1) * bound
        finals = tuple(f"{state}_n" for state in case.states)
        wanted = {"output": ("output",), "h_n": finals}.get(case.upstream, ("output", *finals))
        shapes |= dict.fromkeys(finals, shapes["hx"])
        upstream = {name: draw(case.upstream, shapes[name]) for name in wanted}
        return cls(case, leaves, upstream, packing, shapes)

    def to(self, device: str) -> "Problem":
        """The same tensors on another device."""
        return replace(
            self,
            leaves={name: leaf.to(device) for name, leaf in self.leaves.items()},
            upstream={name: base.to(device) for name, base in self.upstream.items()},
            packing=None if self.packing is None else self.packing.to(device),  # type: ignore[arg-type]
        )

    def run(self, module: nn.Module) -> dict[str, Tensor]:
        """Output, h_n and the gradient of every leaf, through `module`'s forward."""
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in self.leaves.items()}
        for name, parameter in module.named_parameters():
            value = leaves[name]
            if self.case.weight_layout == "transposed" and value.dim() == 2:
                value = value.detach().t().contiguous().t()
            parameter.data = value.detach()
            leaves[name] = parameter
        return self.results(leaves, self.call(module, leaves))

    def call(self, module: nn.Module, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Output (packed: its data) and final states of `module`, whose weights are set already."""
        x, initial = self.arguments(leaves)
        if self.packing is not None:
            _, *packing = self.packing
            x = PackedSequence(x, *packing)
        hx = initial[0] if len(initial) == 1 else tuple(initial) or None
        return self.named(flat(module(x, hx)))

    def named(self, produced: Sequence[Tensor]) -> dict[str, Tensor]:
        """The output and the final states by name."""
        names = ("output", *(f"{state}_n" for state in self.case.states))
        return dict(zip(names, produced, strict=True))

    def arguments(self, leaves: Mapping[str, Tensor]) -> tuple[Any, list[Tensor]]:
        """`input` (packed: its data) and initial states as views of their leaves."""
        x = viewed(self.case.input_layout, leaves["input"], self.shapes["input"])
        names = [f"{state}x" for state in self.case.states if f"{state}x" in leaves]
        return x, [viewed(self.case.hx_layout, leaves[n], self.shapes["hx"]) for n in names]

    def results(
        self, leaves: Mapping[str, Tensor], produced: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The forward's results and the gradients of `leaves` for the upstream gradients."""
        grads = torch.autograd.grad(
            [produced[name] for name in self.upstream],
            list(leaves.values()),
            self.upstream_gradients(produced["output"].dtype),
        )
        named = {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        return {name: t.detach() for name, t in produced.items()} | named

    def upstream_gradients(self, dtype: torch.dtype) -> list[Tensor]:
        return [
            viewed(self.case.upstream, base.to(dtype), self.shapes[name])
            for name, base in self.upstream.items()
        ]

    def typical_gradients(
        self, leaves: Mapping[str, Tensor], produced: Mapping[str, Tensor]
    ) -> dict[str, float]:
        """The largest gradients of `leaves` over upstream gradients of random signs."""
        largest = dict.fromkeys((f"grad_{name}" for name in leaves), 0.0)
        for _ in range(2):
            signed = [
                g * (2 * torch.randint_like(g, 2) - 1)
                for g in self.upstream_gradients(produced["output"].dtype)
            ]
            grads = torch.autograd.grad(
                [produced[name] for name in self.upstream],
                list(leaves.values()),
                signed,
                retain_graph=True,
            )
            for name, grad in zip(largest, grads, strict=True):
                largest[name] = max(largest[name], grad.abs().max().item())
        return largest


def _packing(case: Case, rng: torch.Generator) -> PackedSequence | None:
    """How sequences of random lengths are packed (the data itself is not used)."""
    if not case.form.startswith("packed"):
        return None
    lengths = torch.randint(1, case.seq_len + 1, (case.batch,), generator=rng)
    lengths[int(torch.randint(case.batch, (), generator=rng))] = case.seq_len
    if case.form == "packed":
        lengths = lengths.sort(descending=True).values
    padded = torch.zeros(case.seq_len, case.batch, 1)
    return pack_padded_sequence(padded, lengths, enforce_sorted=case.form == "packed")


def _shapes(case: Case, packing: PackedSequence | None) -> dict[str, tuple[int, ...]]:
    lead: tuple[int, ...]
    if packing is not None:
        lead = (len(packing.data),)
    elif case.form == "unbatched":
        lead = (case.seq_len,)
    elif case.batch_first:
        lead = (case.batch, case.seq_len)
    else:
        lead = (case.seq_len, case.batch)
    stacked = case.num_layers * case.directions
    batch = () if case.form == "unbatched" else (case.batch,)
    state = (stacked, *batch, case.hidden_size)
    return {
        "input": (*lead, case.input_size),
        "hx": state,
        "output": (*lead, case.directions * case.hidden_size),
    }


assert {"kind", *FACTORS} == {f.name for f in fields(Case)}
