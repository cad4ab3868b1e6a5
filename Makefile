# make demo    trains a language model on two ranks, from nothing
# make examples  trains on digits, on a differential equation, and adapters of a Llama; plots go to runs/
# make test    every test that this machine can run: C++ by ctest, Python by pytest
# make lint    formats, clang-tidy, ruff, mypy, the arrows between the rooms, self-contained headers
# make faults  the long forms of the tests of faults: ranks that die, freeze and stall, and saves cut off anywhere; hours
# make sanitize, make sanitize-gpu, make bench, make format, make clean
#
# Each step leaves a stamp, in .venv/ or .cache/, and is done again only when something it depends on has changed.

PYTHON ?= python3
JOBS ?= $(shell nproc)
export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(VIRTUAL_ENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

install := python -m pip install -qq --constraint constraints.txt
has_gpu := $(shell nvidia-smi -L 2>/dev/null)
native_code := $(shell find cpp cuda python/src tests bench examples -name '*.h' -o -name '*.cpp' -o -name '*.cu')
wheel_parts := $(shell find cpp cuda python cmake -type f -not -name '*.pyc') CMakeLists.txt VERSION pyproject.toml LICENSE

.PHONY: demo examples test test-cpp test-python faults lint lint-cpp lint-python headers tidy format
.PHONY: sanitize asan tsan sanitize-gpu bench clean
.DELETE_ON_ERROR:

two_ranks := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(( ($$(nproc) + 1) / 2 ))} \
  python -m torch.distributed.run --standalone --nproc-per-node 2

demo: .venv/aliquot
	$(two_ranks) examples/python/train_lm.py --stage 3

examples: .venv/aliquot .venv/examples
	$(two_ranks) examples/python/vision.py
	$(two_ranks) examples/python/science.py
	$(two_ranks) examples/python/lora.py

test: test-cpp test-python

test-cpp: .venv/build .cache/test_libraries
	@cmake --preset release --log-level=WARNING
	@cmake --build --preset release --parallel $(JOBS)
	@ctest --preset release --parallel $(JOBS) $(if $(has_gpu),,--label-exclude gpu)

test-python: .venv/aliquot .venv/dev .venv/examples
	@python -m pytest $(if $(has_gpu),,-m "not gpu")

lint: lint-python lint-cpp headers
	@$(MAKE) --no-print-directory --jobs $(JOBS) tidy

lint-python: .venv/dev
	@python tools/check_arrows.py
	@ruff check --quiet .
	@ruff format --quiet --check .
	@mypy --no-error-summary

lint-cpp: .venv/dev
	@clang-format --dry-run --Werror $(native_code)

headers: .cache/lint_build
	@cmake --build --preset headers --parallel $(JOBS) -- --quiet

tidied := $(patsubst %,.cache/tidy/%,$(wildcard cpp/src/*.cpp cpp/src/cpu/*.cpp python/src/*.cpp))
tidy: $(tidied)

.cache/tidy/%: % .clang-tidy $(filter %.h,$(native_code)) | .cache/lint_build .venv/dev
	@echo "clang-tidy $<"
	@clang-tidy --quiet -p build/lint $< 2>/dev/null
	@mkdir -p $(@D) && touch $@

format: .venv/dev
	@clang-format -i $(native_code)
	@ruff check --quiet --fix . ; ruff format --quiet .

faults: export ALIQUOT_FAULT_RANKS := 3
faults: export ALIQUOT_FUZZ_SECONDS := 60
faults: .venv/aliquot .venv/dev .venv/examples .venv/build .cache/test_libraries
	@cmake --preset release --log-level=WARNING
	@cmake --build --preset release --parallel $(JOBS) --target aliquot_tests
	@ctest --preset release --tests-regex '^Control'
	@python -m pytest --kills 50 --freezes 50 --stall-seconds 1800 --all-faults tests/faults \
	  $(addprefix tests/python/test_,$(addsuffix .py,liveness stopping peer_lost stalls interchange_refusals checkpoint_fuzz))

sanitize: asan tsan

# Thread sanitizer needs its shadow where address-space randomization may put something else.
tsan: run_unmoved := setarch --addr-no-randomize
asan tsan: .venv/build .cache/test_libraries
	@cmake --preset $@ --log-level=WARNING
	@cmake --build --preset $@ --parallel $(JOBS)
	@$(run_unmoved) ctest --preset $@ --parallel $(JOBS)

sanitize-gpu: .venv/build .cache/test_libraries
	@cmake --preset release --log-level=WARNING
	@cmake --build --preset release --parallel $(JOBS) --target aliquot_cuda_tests
	@tests/cuda/sanitize.sh

bench: .venv/build .cache/test_libraries
	@cmake --preset bench --log-level=WARNING
	@cmake --build --preset bench --parallel $(JOBS)
	@echo "The benchmarks are in build/bench/bin"

clean:
	rm -rf build dist .cache .mypy_cache .ruff_cache .pytest_cache

# What the above stand on

.cache/python:
	@mkdir -p $(@D)
	@tools/ensure.sh "$(PYTHON) -c 'import ensurepip'" python3-venv
	@tools/ensure.sh "test -e $$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" python3-dev
	@touch $@

.cache/test_libraries:
	@mkdir -p $(@D)
	@tools/ensure.sh "echo '#include <gmock/gmock.h>' | c++ -x c++ -E -" libgtest-dev libgmock-dev
	@tools/ensure.sh "echo '#include <benchmark/benchmark.h>' | c++ -x c++ -E -" libbenchmark-dev
	@touch $@

.cache/lint_build: .venv/build .cache/test_libraries CMakePresets.json VERSION \
  $(wildcard CMakeLists.txt */CMakeLists.txt cmake/*.cmake)
	@cmake --preset lint --log-level=WARNING
	@touch $@

.venv/venv: | .cache/python
	@echo "Creating .venv"
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/build: constraints.txt .venv/venv
	@echo "Installing the build tools"
	@$(install) cmake ninja pybind11 scikit-build-core
	@touch $@

.venv/run: constraints.txt .venv/venv
	@echo "Installing torch"
	@$(install) torch numpy pydantic rich safetensors
	@touch $@

.venv/examples: constraints.txt .venv/run
	@echo "Installing what the examples use"
	@$(install) matplotlib peft scikit-learn scipy transformers
	@touch $@

.venv/dev: constraints.txt .venv/run
	@echo "Installing the test and lint tools"
	@$(install) clang-format clang-tidy hypothesis mypy pytest ruff
	@touch $@

# The old package goes first: the build loads the cmake.prefix entry points of what is installed, and with them torch.
.venv/aliquot: $(wheel_parts) .venv/build .venv/run
	@echo "Building and installing aliquot"
	@python -m pip uninstall -qq --yes aliquot
	@$(install) --no-build-isolation --no-deps .
	@touch $@
