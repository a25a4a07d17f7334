"""Deletes each barrier of the CUDA kernels in turn: parity must break, or the barrier is redundant.

`make cuda-mutants` runs it. Exit status: the number of barriers whose absence nothing notices.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import emulation  # noqa: E402
from test_cuda_emulation import KINDS, PRECISION, parity_error  # noqa: E402

BARRIER = re.compile(r"__syncthreads\(\);")
HOLDS, BREAKS = 40, 41  # exit statuses of a check


def barriers():
    for source in emulation.kernel_sources(ROOT / "csrc"):
        for match in BARRIER.finditer(source.read_text()):
            yield source, match


def breaks_parity(csrc):
    """Whether kernels compiled from `csrc` are wrong in any case. In a process of its own."""
    library = emulation.build_library(csrc, emulation.BUILD)
    done = subprocess.run([sys.executable, __file__, str(library)], stdout=subprocess.DEVNULL)
    if done.returncode not in (HOLDS, BREAKS):
        raise SystemExit(f"the check of {library} did not run")
    return done.returncode == BREAKS


def is_needed(source, barrier):
    """Whether parity breaks without this barrier of `source`."""
    with tempfile.TemporaryDirectory() as folder:
        csrc = Path(folder, "csrc")
        shutil.copytree(ROOT / "csrc", csrc)
        text = barrier.string[: barrier.start()] + barrier.string[barrier.end() :]
        (csrc / source.relative_to(ROOT / "csrc")).write_text(text)
        return breaks_parity(csrc)


def holds(case, order):
    try:
        return parity_error(case, order) <= PRECISION[case.dtype]
    except RuntimeError as error:
        if "launching a CUDA kernel failed" not in str(error):
            raise
        return False  # the emulation itself found a fault


def check(library):
    emulation.load(library)
    all_hold = all(holds(case, order) for case in KINDS for order in ("identity", "reversed"))
    return HOLDS if all_hold else BREAKS


def main():
    if breaks_parity(ROOT / "csrc"):
        raise SystemExit("parity is broken before any barrier is deleted")
    redundant = 0
    for source, barrier in barriers():
        line = barrier.string[: barrier.start()].count("\n") + 1
        needed = is_needed(source, barrier)
        redundant += not needed
        state = "needed" if needed else "REDUNDANT"
        print(f"{source.relative_to(ROOT)}:{line}: {state}", flush=True)
    print(f"{redundant} redundant")
    return redundant


if __name__ == "__main__":
    sys.exit(check(Path(sys.argv[1])) if len(sys.argv) > 1 else main())
