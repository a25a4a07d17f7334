# Functions that make a Debian system in .arm/root, and run commands in it. It is x86-64, so its
# compiler runs at full speed; its Python is for aarch64, and torch with it. It is made once: remove
# .arm for a fresh one. Needs root. To be sourced by bash in the top folder, with `set -e` and with
# `work`, the folder in that system for a copy of the tree.
root=$PWD/.arm/root
tree=$root$work
binfmt=/proc/sys/fs/binfmt_misc

stop() {
    echo "make: $1" >&2
    exit 1
}

make_root() {
    [ "$(id -u)" = 0 ] || stop "a system for aarch64 needs root: run make with sudo"
    for tool in mmdebstrap arch-test qemu-aarch64-static; do
        command -v $tool > /dev/null ||
            stop "$tool is missing (Debian: apt install mmdebstrap arch-test qemu-user-static)"
    done
    # Has the kernel start aarch64 programs with the emulator.
    mountpoint -q $binfmt || mount -t binfmt_misc binfmt_misc $binfmt
    [ -e $binfmt/qemu-aarch64 ] || cat /usr/lib/binfmt.d/qemu-aarch64.conf > $binfmt/register
    [ -e .arm/ready ] && return
    rm -rf .arm
    mkdir .arm
    mmdebstrap --quiet --variant=minbase --architectures=amd64,arm64 --include="
        python3:arm64 libpython3-dev:arm64 libstdc++6:arm64 libgomp1:arm64
        g++-12-aarch64-linux-gnu ninja-build llvm-19 qemu-user" bookworm "$root"
    # With all dependencies named: pip would choose torch's for this machine. Later wheels of torch
    # for aarch64 are CUDA builds.
    : > .arm/none
    PIP_CONSTRAINT=.arm/none .venv/bin/python -m pip install -q --disable-pip-version-check \
        --no-deps --no-compile --only-binary=:all: --python-version 3.11 \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_17_aarch64 \
        --platform manylinux2014_aarch64 --target "$root/usr/local/lib/python3.11/dist-packages" \
        torch==2.10.0 filelock fsspec jinja2 markupsafe mpmath networkx sympy typing_extensions \
        setuptools pybind11 numpy psutil \
        pytest iniconfig packaging pluggy pygments hypothesis sortedcontainers expecttest
    touch .arm/ready
}

# Copies the tree. What the last run compiled stays.
copy_tree() {
    mkdir -p "$tree"
    find "$tree" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
    git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - |
        tar -C "$tree" -xf -
}

# The mounts end with the command.
in_root() {
    unshare --mount sh -c '
        mount -t proc proc "$0/proc" && mount -t sysfs -o ro sysfs "$0/sys" &&
            mount -t tmpfs tmpfs "$0/dev/shm" && exec chroot "$0" env -C "$@"
        ' "$root" "$work" HOME=/root CXX=aarch64-linux-gnu-g++-12 PYTHONDONTWRITEBYTECODE=1 "$@"
}

# Runs setup.py with the variables and arguments given; its output is shown if it fails.
setup() {
    in_root FORCE_CPU=1 "$@" > .arm/build.log 2>&1 || {
        cat .arm/build.log >&2
        stop "the build for aarch64 failed"
    }
}
