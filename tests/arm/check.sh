#!/bin/bash
# check.sh [ARGUMENT...] builds the package for aarch64 and runs it under emulation (`make
# arm-check`). With arguments it passes them to pytest. Without, it runs the tests of the numbers,
# after it has counted instructions and printed the speed of the kernels by a model of two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=/rnn_ext
. tests/arm/root.sh

run_tests() {
    in_root OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python3 -m pytest -q "$@"
}

make_root
copy_tree
setup python3 setup.py -q build_ext --inplace
if [ $# -gt 0 ]; then
    run_tests "$@"
    exit
fi
in_root python3 tests/arm/rates.py
cc -O1 -shared -fPIC -o "$tree/count.so" tests/arm/count.c
in_root python3 tests/arm/instructions.py
# Without those that take longest.
run_tests -k "not (long_reductions or mean_error)" \
    tests/test_{isa,half,vector_functions,unpacked_weights,gradcheck,reset,cells,recurrent,packed}.py \
    tests/test_{numerics,parity}.py
