# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
EXAMPLE := examples/fashion_mnist
DEMO := demo-out

.PHONY: demo test test-full bench lint format clean

demo: $(VENV)/.run
	@$(BIN)/greencc compile $(EXAMPLE)/model.onnx --target cpu \
		--calibration $(EXAMPLE)/calibration.npz --eval $(EXAMPLE)/eval.npz \
		--max-drop 1% --confidence 95% -o $(DEMO)/fashion_mnist.greencc --force

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -m "not full"

test-full: $(VENV)/.test
	$(BIN)/python -m pytest -q

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Peers get an environment of their own. BENCH_MODELS=FOLDER adds models; ARGS are passed on (--quick, --only build).
bench: $(VENV)/bench/.ready
	$(VENV)/bench/bin/python -m benchmarks.run $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e ".[test]"
	@touch $@

$(VENV)/.lint: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e ".[lint,test]"
	@touch $@

$(VENV)/bench/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)/bench
	$(VENV)/bench/bin/python -m pip --disable-pip-version-check install --quiet -e ".[bench,images]"
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
