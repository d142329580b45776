# The two commands of the README do all the set-up themselves: `make demo` and `make test`.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "edgemed's training side needs Python 3.11 or newer; set PYTHON=python3.11 (or newer)"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip

.venv/demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,lite0,rtx]'
	@touch $@

.venv/all: pyproject.toml .venv/demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,lite0,rtx,sign,dicom,dev]'
	@touch $@

.PHONY: install
install: .venv/all  ## a .venv with edgemed (editable) and everything the tests need

.PHONY: demo
demo: .venv/demo  ## the whole path on phantoms, under build/demo; the last line is one JSON document
	$(BIN)/python benchmarks/demo.py build/demo

.PHONY: bench
bench: .venv/all  ## benchmarks/README.md from the results that are there
	$(BIN)/python benchmarks/readme.py

.PHONY: bench-run
bench-run: .venv/all  ## measure again what needs no run of its own, on a quiet machine: DATA=FOLDER (images per class)
	@test -n "$(DATA)" || { echo "name a folder of images per class: make bench-run DATA=FOLDER"; exit 2; }
	-$(BIN)/python benchmarks/peers.py
	-$(BIN)/python benchmarks/graph_forms.py
	-$(BIN)/python benchmarks/scaling.py
	-$(BIN)/python benchmarks/patch_entropy.py
	-$(BIN)/python benchmarks/warm_start.py
	-$(BIN)/python benchmarks/loading.py "$(DATA)"
	$(MAKE) --no-print-directory bench

CPP_PACKAGES := cmake g++ pkg-config nlohmann-json3-dev libpng-dev libjpeg-dev libssl-dev
.PHONY: cpp-deps
cpp-deps:  ## Debian's packages for the C++ library and its tests, where they are missing (needs root)
	@dpkg -s $(CPP_PACKAGES) >/dev/null 2>&1 || \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(CPP_PACKAGES) >/dev/null; }

.PHONY: test
test: .venv/all  ## the tests, ruff and mypy
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory types
	$(BIN)/python -m pytest -m "not gpu and not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

# mypy cannot follow setuptools' editable hook to kernels/, so it checks the package as the wheel lays it out.
.PHONY: types
types: .venv/all  ## mypy --strict
	@rm -rf build/types && mkdir -p build/types
	@cp -r edgemed build/types/edgemed && cp -r kernels build/types/edgemed/kernels
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p edgemed

.PHONY: test-long
test-long: .venv/all  ## the slow suites too: sanitizers, fuzzing, every cell, real images
	$(BIN)/python -m pytest -m "not gpu"

.PHONY: test-gpu
test-gpu: .venv/all  ## what only a machine with an NVIDIA GPU can show
	$(BIN)/python -m pytest -m gpu

.PHONY: kernels
kernels: .venv/all  ## the CUDA kernels for nine GPU generations, into build/kernels (needs nvcc); Triton's for a table
	$(BIN)/python -m edgemed.kernels.compile

.PHONY: test-oldest
test-oldest:  ## the tests with the oldest NumPy that pyproject.toml allows, in build/oldest
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet --disable-pip-version-check 'numpy==1.26.*' -e '.[train,lite0,rtx,sign,dicom,dev]'
	build/oldest/bin/python -m pytest -m "not gpu and not slow" --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: wheel
wheel: .venv/all  ## build/dist/*.whl, with the kernels of `make kernels` where they were made
	@rm -rf build/lib kernels/binaries; if [ -d build/kernels ]; then cp -r build/kernels kernels/binaries; fi
	$(BIN)/python -m build --wheel --outdir build/dist; status=$$?; rm -rf kernels/binaries; exit $$status

.PHONY: clean
clean:  ## remove build/ and the caches (not .venv)
	rm -rf build .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
