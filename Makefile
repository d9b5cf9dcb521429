# `make demo` and `make test` are all a newcomer needs: each sets up what it lacks in .venv, once.
#
# To override: PYTHON (a Python 3.10 to 3.13), CXX, CXXFLAGS and LDFLAGS (see setup.py), TEST_ARGS,
# MUTANTS_ARGS, DEMO_ARGS, EXPERIMENT_ARGS, WHEEL_ARGS, BENCH_ARGS, BENCH_PEERS (Pythons that have
# packages to compare with), and TF_DEFORMABLE_PURE_PYTHON=1 to do without a compiler.

PYTHON ?= python3 python3.13 python3.12 python3.11 python3.10 python

# What `make fuzz` is compiled with (Debian: clang-19 and libclang-rt-19-dev), and how long it looks.
CLANGXX ?= clang++
FUZZ_SECONDS ?= 60

# Test files share no state; a worker takes up to 2 GB.
TEST_ARGS ?= --numprocesses auto --maxprocesses 4 --dist worksteal

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PIP_INSTALL_LOCKED := $(PIP_INSTALL) --require-hashes --requirement

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' tf_deformable/_version.py)

# The folders are listed too: they change when a file goes.
CXX_SOURCES := $(shell find cc)
CXX_FORMATTED := $(filter %.cc %.h %.inc,$(CXX_SOURCES) $(wildcard tests/native/*))

ifeq ($(filter-out 0,$(TF_DEFORMABLE_PURE_PYTHON)),)
LIBRARY := tf_deformable/libtf_deformable_kernels-$(VERSION).so
INSTALLED := $(VENV)/installed-native
else
LIBRARY :=
INSTALLED := $(VENV)/installed-pure-python
endif

.PHONY: help demo demo-detector demo-detr experiments experiment-segmentation experiment-effective-dilation \
	experiment-detection experiment-costs docs docs-check test bench bench-quick build wheel wheel-check sanitizers \
	fuzz lock mutants lint format clean \
	compiler

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile | expand -t 36

demo: $(INSTALLED)-demo $(LIBRARY) ## train on handwritten digits, export, serve, draw
	$(BIN)/python examples/digits_demo.py $(DEMO_ARGS)

demo-detector: $(INSTALLED)-demo $(LIBRARY) ## train detectors with plain and with deformable RoI pooling
	$(BIN)/python examples/detector_demo.py $(DEMO_ARGS)

demo-detr: $(INSTALLED)-demo $(LIBRARY) ## train a small Deformable DETR, draw where its queries look
	$(BIN)/python examples/detr_demo.py $(DEMO_ARGS)

experiments: experiment-segmentation experiment-effective-dilation experiment-detection experiment-costs ## all of docs/experiments.md, docs/effective_dilation.md

experiment-segmentation: $(INSTALLED)-demo $(LIBRARY) ## plain, atrous and deformable segmentation, an hour
	$(BIN)/python experiments/segmentation.py $(EXPERIMENT_ARGS)

experiment-effective-dilation: $(INSTALLED)-demo $(LIBRARY) ## how far apart filters sample, by object size; trains what segmentation has not
	$(BIN)/python experiments/effective_dilation.py $(EXPERIMENT_ARGS)

experiment-detection: $(INSTALLED)-demo $(LIBRARY) ## plain and deformable detectors, three quarters of an hour
	$(BIN)/python experiments/detection.py $(EXPERIMENT_ARGS)

experiment-costs: $(INSTALLED)-demo $(LIBRARY) ## weights and time of whole networks
	$(BIN)/python experiments/costs.py $(EXPERIMENT_ARGS)

docs: $(VENV)/docs-tools ## build the documentation, API reference included, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-check: $(INSTALLED)-test $(LIBRARY) ## run the code of the documentation
	$(BIN)/python -m pytest tests/examples/test_documents.py

test: $(INSTALLED)-test $(LIBRARY) ## run all tests, those of layers and models under both Kerases
	$(BIN)/python -m pytest $(TEST_ARGS)
	TF_USE_LEGACY_KERAS=1 $(BIN)/python -m pytest $(TEST_ARGS) tests/analysis tests/convert tests/distribution tests/export tests/graphs tests/layers tests/models tests/serving

bench: $(INSTALLED)-bench $(LIBRARY) ## time it against other packages, two hours, for docs/benchmarks.md
	$(BIN)/python benchmarks/deformable_conv2d.py $(BENCH_PEERS:%=--peers-python %) $(BENCH_ARGS)
	$(BIN)/python benchmarks/roi_pool.py $(BENCH_PEERS:%=--peers-python %) $(BENCH_ARGS)
	$(BIN)/python benchmarks/deformable_attention.py $(BENCH_PEERS:%=--peers-python %) $(BENCH_ARGS)
	$(BIN)/python benchmarks/deformable_conv2d_layer.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/roi_pool_layers.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/resnet.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/report.py

bench-quick: $(INSTALLED)-test $(LIBRARY) ## check that no fast path was lost, a minute
	$(BIN)/python benchmarks/deformable_conv2d.py --quick
	$(BIN)/python benchmarks/roi_pool.py --quick
	$(BIN)/python benchmarks/deformable_attention.py --quick
	$(BIN)/python benchmarks/deformable_conv2d_layer.py --quick

wheel: $(VENV)/wheel-tools ## build one wheel for TensorFlow 2.16 to 2.21, into build/wheels; CUDA=1: with CUDA kernels
	TF_DEFORMABLE_CUDA=$(or $(CUDA),0) $(BIN)/python wheels/build.py $(WHEEL_ARGS)

wheel-check: $(VENV)/wheel-tools ## try that wheel in a clean environment for each of them, half an hour
	$(BIN)/python wheels/check.py $(WHEEL_ARGS)

build: $(VENV)/build-requirements ## compile what changed: sources, flags, compiler or TensorFlow
	$(BIN)/python setup.py build_ext --inplace

sanitizers: $(VENV)/build-requirements ## run the native tests under the address, undefined behaviour and thread sanitizers
	cd cc && for preset in address thread; do \
		PATH="$(CURDIR)/$(BIN):$$PATH" && cmake --preset $$preset && \
		cmake --build --preset $$preset --target native_tests && \
		ctest --preset $$preset || exit 1; \
	done

# A failure is kept in build/fuzz, what reaches new code in build/fuzz/found. See CONTRIBUTING.md.
fuzz: $(VENV)/build-requirements ## let clang's libFuzzer look for inputs that fail, for FUZZ_SECONDS (60)
	cd cc && PATH="$(CURDIR)/$(BIN):$$PATH" && cmake --preset fuzz -DCMAKE_CXX_COMPILER=$(CLANGXX) && \
		cmake --build --preset fuzz
	mkdir -p build/fuzz/found
	build/fuzz/native_tests/fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=512 -len_control=0 -print_final_stats=1 \
		-artifact_prefix=build/fuzz/ build/fuzz/found tests/native/corpus

lock: $(VENV)/created ## renew requirements/: the newest versions that pyproject.toml allows, with their hashes
	$(PIP_INSTALL) --upgrade pip && $(PIP_INSTALL) --group lock
	$(BIN)/python requirements/lock.py

mutants: $(INSTALLED)-test $(LIBRARY) ## put single faults into the code and see that tests fail, hours
	$(BIN)/python tests/mutants/run.py $(MUTANTS_ARGS)

lint: $(VENV)/dev-tools ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(CXX_FORMATTED)
	$(BIN)/mypy

format: $(VENV)/dev-tools ## mend what lint says about style, where that can be done by a program
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FORMATTED)

clean: ## remove what was built (not .venv)
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f tf_deformable/libtf_deformable_*.so tf_deformable/PURE_PYTHON $(VENV)/installed-*

# Setting up. A file in .venv says that a step is done; it is done again when what it reads changes.

# Asked before TensorFlow is downloaded, not after.
compiler:
	@command -v $(firstword $(CXX)) > /dev/null || { \
		echo "There is no C++ compiler ($(CXX)): install g++ (Debian and Ubuntu: apt install g++;" \
			"Fedora: dnf install gcc-c++), or set TF_DEFORMABLE_PURE_PYTHON=1 to do without." >&2; \
		exit 1; \
	}

# A candidate counts only if it runs: version managers leave commands on the PATH that do not.
$(VENV)/created: | $(if $(LIBRARY),compiler)
	@unfit=; \
	for python in $(PYTHON); do \
		"$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
			> /dev/null 2>&1 || continue; \
		if "$$python" -c 'import ensurepip, venv' > /dev/null 2>&1; then \
			echo "Setting up .venv with $$("$$python" --version), once; TensorFlow is a large download."; \
			"$$python" -m venv $(VENV) && touch $@ && exit 0; \
			exit 1; \
		fi; \
		unfit=$$python; \
	done; \
	if [ -n "$$unfit" ]; then \
		echo "$$unfit cannot make virtual environments: install its venv module (Debian and Ubuntu:" \
			"apt install python3-venv), or name another Python: make PYTHON=/path/to/python" >&2; \
	else \
		echo "There is no Python 3.10 to 3.13 among these: $(PYTHON). Install one" \
			"(Debian and Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python" >&2; \
	fi; \
	exit 1

# Tools are locked, versions and hashes; TensorFlow and what runs beside it are the user's choice.
$(VENV)/build-requirements: pyproject.toml requirements/build.txt $(VENV)/created
	@$(PIP_INSTALL_LOCKED) requirements/build.txt
	@sed -n '/^requires = \[/,/^\]/s/^ *"\(tensorflow.*\)",$$/\1/p' pyproject.toml | xargs $(PIP_INSTALL) --upgrade
	@touch $@

$(VENV)/%-tools: requirements/%.txt $(VENV)/build-requirements
	@$(PIP_INSTALL_LOCKED) $<
	@touch $@

$(INSTALLED)-%: pyproject.toml setup.py $(VENV)/build-requirements | $(LIBRARY)
	@echo "Installing tf_deformable[$*] into .venv"
	@# The warning is setuptools' own, about what an editable install is.
	@PYTHONWARNINGS=ignore $(PIP_INSTALL) --no-build-isolation --editable '.[$*]'
	@touch $@

tf_deformable/libtf_deformable_kernels-$(VERSION).so: $(CXX_SOURCES) setup.py $(VENV)/build-requirements
	@$(BIN)/python setup.py build_ext --inplace
