"""Packed sequences: each has the results that it has alone, and the result is packed alike."""

from itertools import pairwise

import pytest
import torch
from support import (
    KINDS,
    PLANS,
    assert_close_fp64,
    assert_same_bits,
    flat,
    hx_of,
    leaves,
    same_bits,
    twins,
    using_threads,
)
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
    unpack_sequence,
)
from torch.utils._pytree import tree_map

import rnn_ext

# Sorted and unsorted, equal, many short ones, several that end at the same step, more rows than a
# tile.
LENGTHS = [
    [1],
    [9],
    [1, 1, 1],
    [6, 6, 6, 6],
    [7, 5, 2],
    [2, 7, 5],
    [40, 1, 1, 1, 1],
    [3, 3, 9, 1, 9, 2, 2],
    [5] * 16 + [4] * 17 + [1] * 5,
    [1 + (7 * i) % 11 for i in range(37)],
]


def sequences(lengths, features):
    return [torch.randn(n, features) for n in lengths]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["tanh", "relu", "GRU", "LSTM"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_each_sequence_has_the_bits_it_has_alone(lengths, kind, bidirectional, isa):
    options = {} if kind in KINDS else {"nonlinearity": kind}
    kind = kind if kind in KINDS else "RNN"
    module = getattr(rnn_ext, kind)(5, 19, 2, bidirectional=bidirectional, **options)
    module.requires_grad_(False)
    xs = sequences(lengths, 5)
    hx = hx_of(kind, 2 * (1 + bidirectional), len(lengths), 19)
    alone = [
        flat(module(x, tree_map(lambda t: t[:, row], hx)))  # noqa: B023
        for row, x in enumerate(xs)
    ]
    for split in PLANS:
        with using_threads(3, split):
            output, final = module(pack_sequence(xs, enforce_sorted=False), hx)
        for row, y in enumerate(unpack_sequence(output)):
            assert_same_bits((y, *(t[:, row] for t in flat(final))), alone[row])


@pytest.mark.parametrize("given", [False, True], ids=["hx None", "hx given"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_padded_inputs_gradient_equals_torchs(lengths, kind, bidirectional, given):
    theirs, ours = twins(5, 6, 2, kind=kind, bidirectional=bidirectional, dtype=torch.float64)
    padded = torch.randn(max(lengths), len(lengths), 5, dtype=torch.float64)
    hx = hx_of(kind, 2 * (1 + bidirectional), len(lengths), 6, dtype=torch.float64)
    results = []
    for module in (theirs, ours):
        x, *states = leaves(padded, *flat(hx))
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        given_hx = tuple(states) if len(states) > 1 else states[0]
        output, final = module(packed, given_hx if given else None)
        unpacked, _ = pad_packed_sequence(output)
        loss = (unpacked * torch.arange(unpacked.shape[-1])).sum()
        loss = loss + sum(t.square().sum() for t in flat(final))
        wanted = [x, *module.parameters(), *(states if given else [])]
        results.append((unpacked, *flat(final), *torch.autograd.grad(loss, wanted)))
    assert_close_fp64(results[1], results[0])


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_result_is_packed_like_the_input(enforce_sorted):
    theirs, ours = twins(5, 6)
    packed = pack_sequence(sequences([7, 5, 2], 5), enforce_sorted=enforce_sorted)
    output, _ = ours(packed)
    expected, _ = theirs(packed)
    assert type(output) is PackedSequence
    assert output.data.shape == expected.data.shape
    assert output.data.is_contiguous()
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    for name in ("sorted_indices", "unsorted_indices"):
        a, b = getattr(output, name), getattr(packed, name)
        assert (a is None) == (b is None) == enforce_sorted
        assert a is None or torch.equal(a, b)


def test_packing_of_equal_lengths_has_the_bits_of_the_padded_batch(isa):
    module = rnn_ext.RNN(5, 17, 2, bidirectional=True)
    x, hx = torch.randn(6, 7, 5), torch.randn(4, 7, 17)
    output, h_n = module(pack_padded_sequence(x, torch.full((7,), 6)), hx)
    assert_same_bits((output.data.view(6, 7, -1), h_n), module(x, hx))


def test_values_in_the_padding_do_not_matter():
    module = rnn_ext.RNN(5, 6, bidirectional=True)
    x = torch.randn(7, 3, 5)
    lengths = torch.tensor([7, 5, 2])
    clean = module(pack_padded_sequence(x, lengths))
    for row, length in enumerate(lengths.tolist()):
        x[length:, row] = torch.nan
    dirty = module(pack_padded_sequence(x, lengths))
    assert_same_bits((dirty[0].data, dirty[1]), (clean[0].data, clean[1]))


@pytest.mark.parametrize("batch_first", [False, True])
def test_batch_first_does_not_affect_packed_data(batch_first):
    theirs, ours = twins(5, 6, 2, batch_first=batch_first, dtype=torch.float64)
    packed = pack_sequence([x.double() for x in sequences([4, 3], 5)])
    hx = torch.randn(2, 2, 6, dtype=torch.float64)
    (a, b), (c, d) = ours(packed, hx), theirs(packed, hx)
    assert_close_fp64((a.data, b), (c.data, d))


def test_hx_follows_its_sequence_through_the_sorting():
    """hx and h_n are in the caller's order, whatever order the data is packed in."""
    module = rnn_ext.RNN(5, 6, 2, bidirectional=True)
    xs, hx = sequences([2, 7, 5], 5), torch.randn(4, 3, 6)
    _, unsorted = module(pack_sequence(xs, enforce_sorted=False), hx)
    order = [1, 2, 0]
    _, by_length = module(pack_sequence([xs[i] for i in order]), hx[:, order])
    assert same_bits(unsorted[:, order], by_length)


def test_h_n_is_each_sequences_own_last_step():
    module = rnn_ext.RNN(5, 6, bidirectional=True)
    output, h_n = module(pack_sequence(sequences([3, 8, 5], 5), enforce_sorted=False))
    for row, y in enumerate(unpack_sequence(output)):
        assert same_bits(h_n[0, row], y[-1, :6])
        assert same_bits(h_n[1, row], y[0, 6:])


def test_gradient_of_one_sequence_leaves_the_others_untouched(isa):
    module = rnn_ext.RNN(5, 6, 2, bidirectional=True)
    xs = [x.requires_grad_() for x in sequences([3, 8, 5], 5)]
    hx = torch.randn(4, 3, 6, requires_grad=True)
    output, _ = module(pack_sequence(xs, enforce_sorted=False), hx)
    grads = torch.autograd.grad(unpack_sequence(output)[1].sum(), [*xs, hx])
    assert grads[1].abs().min() > 0
    assert not grads[0].any()
    assert not grads[2].any()
    assert grads[3][:, 1].abs().min() > 0
    assert not grads[3][:, [0, 2]].any()


def test_strided_batch_sizes_are_read_right():
    """PackedSequence is a plain tuple: users build it by hand, from slices."""
    module = rnn_ext.RNN(5, 6)
    packed = pack_sequence(sequences([7, 5, 2], 5))
    strided = torch.stack([packed.batch_sizes, packed.batch_sizes + 9], dim=1)[:, 0]
    assert not strided.is_contiguous()
    expected = module(packed)
    actual = module(PackedSequence(packed.data, strided))
    assert_same_bits((actual[0].data, actual[1]), (expected[0].data, expected[1]))


def test_batch_sizes_changed_before_backward_are_an_error():
    """Backward reads them again; autograd notices the change, as it does for every saved tensor."""
    module = rnn_ext.RNN(5, 6, dtype=torch.float64)
    packed = pack_sequence([x.double() for x in sequences([7, 5, 2], 5)])
    sizes = packed.batch_sizes.clone()
    output, _ = module(PackedSequence(packed.data, sizes))
    sizes.fill_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(output.data.sum(), list(module.parameters()))


def test_lengths_table_covers_what_it_should():
    drops = [a - b for lengths in LENGTHS for a, b in pairwise(_batch_sizes(lengths))]
    assert {0, 1, 4} <= set(drops)


def _batch_sizes(lengths):
    return [sum(n > t for n in lengths) for t in range(max(lengths))]
