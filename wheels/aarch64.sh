#!/bin/bash
# Writes a wheel for aarch64, of its system's Python, to wheelhouse, and tries it under emulation
# (`make arm-wheel`).
set -euo pipefail
cd "$(dirname "$0")/.."
work=/wheel
. tests/arm/root.sh

make_root
copy_tree
rm -rf "$tree"/build/lib* # or the wheel would keep removed files
in_root READELF=llvm-readelf-19 python3 wheels/old_libraries.py $work/libraries
setup LDFLAGS="-L$work/libraries -Wl,--exclude-libs,ALL" \
    python3 setup.py -q bdist_wheel --dist-dir dist
# auditwheel knows tags for other machines only as "auto", the oldest that fits.
PATH="$PWD/.venv/bin:$PATH" PLATFORM=auto sh wheels/repair.sh wheelhouse "$tree"/dist/*.whl
wheel=$(ls wheelhouse/rnn_ext-*-manylinux_2_2[0-8]_aarch64.whl)
.venv/bin/python -m zipfile -e "$wheel" "$tree/installed"
in_root PYTHONPATH=$work/installed python3 -P wheels/smoke.py Python
ls -l wheelhouse
