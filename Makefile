# Two commands do everything: `make compare` runs the main job, `make test` what CI runs. Each makes its own environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: compare test lint types layers unit test-interop format gpu-wheels clean

compare: $(VENV)/installed
	$(BIN)/python benchmarks/compare_energy.py --config configs/digits.yaml

test: lint types layers unit

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

layers: $(VENV)/installed-dev
	$(BIN)/lint-imports

unit: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# Libraries and compilers too heavy for every day, in an environment of their own.
test-interop: $(VENV)-interop/installed
	$(VENV)-interop/bin/python -m pytest -m interop tests/interop

INTEROP_PIP := $(VENV)-interop/bin/python -m pip --disable-pip-version-check install --quiet \
	--constraint constraints.txt --constraint constraints-interop.txt
INTEROP_MODELS := transformers accelerate lightning timm torchvision torch-geometric
# Other counters, with what they import and no more: what they ask for brings torch again, notebooks and compilers.
INTEROP_COUNTERS := torchinfo ptflops calflops thop fvcore iopath portalocker tabulate termcolor \
	qonnx onnx onnxruntime protobuf toposort clize sigtools
# ZigZag with what it imports, six among it, which it does not declare.
INTEROP_ZIGZAG := zigzag-dse six Cerberus multiprocessing_on_dill dill seaborn pandas python-dateutil typeguard

$(VENV)-interop/installed: pyproject.toml constraints.txt constraints-interop.txt
	$(PYTHON) -m venv $(VENV)-interop
	$(INTEROP_PIP) torch
	$(INTEROP_PIP) --editable .[dev] triton $(INTEROP_MODELS)
	$(INTEROP_PIP) --no-deps $(INTEROP_COUNTERS) $(INTEROP_ZIGZAG)
	touch $@

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch comes first and pinned: an unpinned one brings gigabytes of CUDA packages.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("lowprec-eb needs Python 3.11 or newer; set PYTHON=") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) --editable .[dev]
	touch $@

# What a machine with torch, numpy and scipy but no network may lack; see docs/gpu.md. The four large ones that it may
# lack too: make gpu-wheels GPU_WHEELS="scikit-learn matplotlib llvmlite pandas"
GPU_PYTHON ?= 3.12
GPU_SUPPLIES ?= build/supplies
GPU_WHEELS ?= qtorch torch-pruning pydantic pydantic_core annotated-types typing-inspection typing_extensions ruamel.yaml \
	typer annotated-doc click shellingham rich markdown-it-py mdurl Pygments filelock safetensors pillow joblib cloudpickle threadpoolctl \
	pytest pluggy iniconfig packaging hypothesis sortedcontainers gfloat array-api-compat more-itertools nvidia-ml-py

gpu-wheels: $(VENV)/installed
	$(BIN)/python -m pip --disable-pip-version-check download --no-deps --only-binary=:all: --constraint constraints.txt \
		--python-version $(GPU_PYTHON) --implementation cp --abi cp$(subst .,,$(GPU_PYTHON)) --abi abi3 --abi none \
		$(foreach of,2_28 2_27 2_17,--platform manylinux_$(of)_x86_64) --platform manylinux2014_x86_64 \
		--dest $(GPU_SUPPLIES) $(GPU_WHEELS)
	du -sh $(GPU_SUPPLIES)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
