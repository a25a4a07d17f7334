"""The CUDA plan, for real and imaginary devices: every device can launch its plan."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnn_ext import _C


@dataclass(frozen=True)
class Device:
    multiprocessors: int
    shared_kib: int
    registers: int = 65536

    def plan(self, batch, hidden_size, directions=1, is_double=False):
        return _C.cuda_plan(
            batch,
            hidden_size,
            directions,
            is_double,
            self.multiprocessors,
            self.shared_kib << 10,
            self.registers,
        )


# By compute capability; the shared memory is what one block may ask for.
T4 = Device(40, 64)
A100 = Device(108, 163)
RTX_3090 = Device(82, 99)
H100 = Device(132, 227)
RTX_5090 = Device(170, 99)
REAL = (T4, A100, RTX_3090, H100, RTX_5090)

DEVICES = st.builds(
    Device,
    multiprocessors=st.integers(1, 1000),
    shared_kib=st.integers(16, 512),
    registers=st.sampled_from([16384, 32768, 65536, 131072]),
)
SIZES = st.integers(1, 5000)


@pytest.mark.parametrize("device", REAL, ids=str)
@pytest.mark.parametrize("is_double", [False, True])
@pytest.mark.parametrize("hidden_size", [1, 32, 64, 65, 128])
def test_small_states_are_persistent_on_every_device(device, is_double, hidden_size):
    regime, columns, _ = device.plan(1, hidden_size, is_double=is_double)
    assert regime == "persistent"
    assert columns == (64 if hidden_size <= 64 else 128)


def test_256_units_are_persistent_if_shared_memory_holds_half_of_the_weights():
    assert H100.plan(1, 256)[:2] == A100.plan(1, 200)[:2] == ("persistent", 256)
    assert {d.plan(1, 256)[0] for d in (T4, RTX_3090, RTX_5090)} == {"step"}


def test_larger_states_and_wide_float64_go_step_by_step():
    assert H100.plan(1, 257)[0] == "step"
    assert H100.plan(1, 129, is_double=True)[0] == "step"


def test_a_block_takes_several_rows_once_every_multiprocessor_has_one():
    assert H100.plan(132, 64) == ("persistent", 64, 1)
    assert H100.plan(133, 64) == ("persistent", 64, 4)
    assert H100.plan(67, 64, directions=2) == ("persistent", 64, 4)


def test_tiles_are_thin_for_few_rows():
    for batch in (1, 4):
        assert H100.plan(batch, 1024, directions=2) == ("step", 16, 4)
        assert Device(1, 227).plan(batch, 4096) == ("step", 16, 4)


def test_tiles_are_large_once_there_is_one_for_every_multiprocessor():
    assert H100.plan(5, 1024) == H100.plan(32, 1024) == ("step", 32, 16)
    assert H100.plan(4096, 1024) == ("step", 64, 64)


@given(
    device=DEVICES, batch=SIZES, hidden_size=SIZES, directions=st.integers(1, 2), d=st.booleans()
)
def test_every_device_gets_a_plan_that_it_can_launch(device, batch, hidden_size, directions, d):
    regime, columns, rows = device.plan(batch, hidden_size, directions, d)
    size = 8 if d else 4
    if regime == "step":
        # Every kernel gets so much without requesting it.
        slices = {4: 64, 16: 8, 64: 1}[rows]
        assert rows * columns * size * slices <= 48 << 10
        assert rows == 4 or batch > 4
        return
    assert hidden_size <= columns
    assert device.registers >= 65536
    assert rows * columns * size < device.shared_kib << 10


@given(device=DEVICES, batch=SIZES, hidden_size=SIZES, d=st.booleans())
def test_more_shared_memory_never_takes_a_persistent_plan_away(device, batch, hidden_size, d):
    larger = Device(device.multiprocessors, device.shared_kib + 64, device.registers)
    if device.plan(batch, hidden_size, is_double=d)[0] == "persistent":
        assert larger.plan(batch, hidden_size, is_double=d)[0] == "persistent"
