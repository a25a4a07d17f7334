"""Prints how fast the register tiles run on two ARM cores, by the scheduling models of llvm-mca.

Assumes that all operands are in the first-level cache. Run by `make arm-check`.
"""

import re
import subprocess
from collections.abc import Iterator

# The multiply-adds of a 16-byte vector that a core starts in a cycle.
CORES = {"neoverse-n1": 2, "neoverse-v1": 4}
# As setup.py has them.
FLAGS = "-std=c++20 -O3 -fPIC -fno-math-errno -fno-trapping-math -ffp-contract=off -Icsrc"
ITERATIONS = 1000
PANEL = 4  # vectors; edges of matrices have narrower tiles
MULTIPLY_ADD = re.compile(r"\tfmla\t")
TILE = re.compile(r".*\btile<(float|double), \1, (\d+), (\d+), false, [^<]*\bPanels?Lines<")


def main() -> None:
    source = "csrc/cpu/kernels_generic.cpp"
    assembly = output("aarch64-linux-gnu-g++-12", *FLAGS.split(), "-S", "-o", "-", source)
    print("flops in a cycle, by llvm-mca, of a tile of rows x vectors of 16 bytes")
    print(f"{'tile':<14}" + "".join(f"{core:>22}" for core in CORES))
    rates = {}
    for name, body in functions(output("aarch64-linux-gnu-c++filt", stdin=assembly)):
        if found := TILE.match(name):
            dtype, rows, vectors = found[1], int(found[2]), int(found[3])
            if vectors >= PANEL:
                rates[dtype, rows, vectors] = rates_of(main_loop(body), dtype)
    for (dtype, rows, vectors), of_tile in sorted(rates.items()):
        print(f"{dtype:<7}{f'{rows} x {vectors}':<7}" + "".join(f"{text:>22}" for text in of_tile))


def rates_of(loop: list[str], dtype: str) -> Iterator[str]:
    lanes = {"float": 4, "double": 2}[dtype]
    flops = 2 * lanes * sum(bool(MULTIPLY_ADD.match(line)) for line in loop)
    for core, started in CORES.items():
        mca = ("llvm-mca-19", "--march=aarch64", f"--mcpu={core}", f"--iterations={ITERATIONS}")
        report = output(*mca, stdin="\n".join(loop))
        cycles = int(re.search(r"Total Cycles: +(\d+)", report)[1]) / ITERATIONS
        peak = 2 * lanes * started
        yield f"{flops / cycles:.1f} ({flops / cycles / peak:.0%} of {peak})"


def functions(assembly: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the name and the lines of each."""
    for part in re.split(r"^(?=[^\s.].*:$)", assembly, flags=re.M)[1:]:
        name, *lines = part.splitlines()
        yield name, lines


def main_loop(lines: list[str]) -> list[str]:
    """Returns the loop with the most multiply-adds, of those that contain no other."""
    loops, labels = [], {}
    for at, line in enumerate(lines):
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = at
        elif (jump := re.match(r"\t(?:b|cb|tb)\S*\t.*(\.L\w+)$", line)) and jump[1] in labels:
            loop = lines[labels.pop(jump[1]) + 1 : at + 1]
            if not any(line.startswith(".L") for line in loop):
                loops.append(loop)
    return max(loops, key=lambda loop: sum(bool(MULTIPLY_ADD.match(line)) for line in loop))


def output(*command: str, stdin: str | None = None) -> str:
    return subprocess.run(command, input=stdin, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
