#!/bin/sh
# repair.sh FOLDER WHEEL writes the wheel to the folder with the tag that torch's own has, or with
# $PLATFORM. torch's libraries stay outside: they are loaded before ours.
exec auditwheel repair --plat "${PLATFORM:-manylinux_2_28_$(uname -m)}" -w "$1" "$2" \
    --exclude libtorch_cpu.so --exclude libtorch_python.so --exclude libc10.so
