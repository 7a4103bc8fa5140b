# Two commands on a fresh machine with Python 3.11 and a C library: `make demo` and `make test`.
# torch is installed first and by an exact pin: a bare `pip install torch` may bring gigabytes of CUDA libraries.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint bench clean

demo: $(VENV)/installed
	$(BIN)/sameguard demo

test: $(VENV)/installed
	$(BIN)/python -m pytest

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

bench: $(VENV)/installed
	for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

$(VENV)/installed: pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[train,openvino,dev]"
	touch $@

clean:
	rm -rf $(VENV) demo-output .pytest_cache .ruff_cache .hypothesis
