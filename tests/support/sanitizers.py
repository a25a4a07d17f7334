"""The kernels, without torch, under a sanitizer of the compiler, or valgrind: `make asan`, `ubsan`,
`tsan`, `memcheck`.

`tests/cpu_kernels.cpp` runs those of the CPU at every ISA level of this machine, and
`tests/cuda_emulation/sanitized.cpp` those of CUDA on the emulated device, which has one thread.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from torch import Tensor

import rnn_ext
from rnn_ext import cells
from rnn_ext._core.cells.program import UNARY

from .compile import ROOT, compile_objects, digest, link
from .emulation import FOLDER, compile_emulated

BUILD = ROOT / "build" / "sanitizers"
CSRC = ROOT / "csrc"
SANITIZERS = {"asan": "address", "ubsan": "undefined,float-cast-overflow", "tsan": "thread"}
# The files of the CPU that see torch.
DRIVERS = {"cell_ops.cpp", "driver.cpp", "packed_ops.cpp"}


@rnn_ext.cell
def functions(u: Tensor, v: Tensor, y: Tensor) -> Tensor:
    """All functions, of numbers from tiny ones to infinity."""
    y = v
    for x in (u.exp().exp(), -u.exp().exp(), u / 1e30):
        for name in UNARY:
            y = y + getattr(x, name)()
    return y


# With one state or more, a second product in a step, parameters and inputs.
CELLS = {
    "functions": functions,
    "gru_reset_before": cells.gru_reset_before,
    "leaky_current": cells.leaky_current,
    "peephole_lstm": cells.peephole_lstm,
}


def run_cpu_kernels(flags: list[str], under: tuple[str, ...] = ()) -> None:
    """Compile the program with these flags, and run it, `under` another one if given.

    Raises:
        subprocess.CalledProcessError: a fault was found, or a result is wrong.
    """
    sources = [path for path in CSRC.glob("cpu/*.cpp") if path.name not in DRIVERS]
    sources += [CSRC / "text" / "generate.cpp", ROOT / "tests" / "cpu_kernels.cpp"]
    headers = [*CSRC.glob("c*/*.h"), *CSRC.glob("text/*.h"), *CSRC.glob("cpu/*.inl")]
    objects = compile_objects(sources, headers, CSRC, BUILD, [*flags, "-ffp-contract=off"])
    program = link(objects, BUILD / f"cpu-{digest(objects)}", [*flags, "-pthread"])
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in CELLS]
        for path, cell in zip(paths, CELLS.values(), strict=True):
            path.write_bytes(cell.program.numpy().tobytes())
        subprocess.run([*under, program, *paths], check=True)


def run_cuda_kernels(flags: list[str]) -> None:
    """Compile and run the program of the emulated device; raises the same."""
    objects = compile_emulated([FOLDER / "sanitized.cpp"], CSRC, BUILD, flags)
    subprocess.run([link(objects, BUILD / f"cuda-{digest(objects)}", flags)], check=True)


def main(name: str) -> None:
    if name == "memcheck":
        # It emulates a CPU without AVX-512, which runs one thread at a time.
        run_cpu_kernels(
            ["-O1", "-g1"], ("valgrind", "-q", "--error-exitcode=1", "--fair-sched=yes")
        )
        return
    # A name of the compiler, or some with commas.
    flags = ["-O0", f"-fsanitize={SANITIZERS[name]}", "-fno-sanitize-recover", "-g1"]
    run_cpu_kernels(flags)
    if name != "tsan":
        run_cuda_kernels(flags)


if __name__ == "__main__":
    main(sys.argv[1])
