# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
EXAMPLE := examples/fashion_mnist
DEMO := demo-out

.PHONY: demo test system-packages test-full test-finetune test-ray bench lint format clean

demo: $(VENV)/.run
	@$(BIN)/greencc compile $(EXAMPLE)/model.onnx --target cpu \
		--calibration $(EXAMPLE)/calibration.npz --eval $(EXAMPLE)/eval.npz \
		--max-drop 1% --confidence 95% -o $(DEMO)/fashion_mnist.greencc --force

# Files of tests are shared out to as many processes. Tests do not rest on how long anything takes.
TEST_WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile

test: $(VENV)/.test system-packages
	$(PYTEST) -m "not full"

# TensorRT-RTX parses and builds what is emitted for TensorRT; it needs no GPU for that. The agent also runs under QEMU.
test-full: $(VENV)/.full system-packages
	@scripts/arm64-python.sh $(VENV)/arm64 >/dev/null 2>&1 || echo "the agent is not run under QEMU: no Python for ARM"
	$(PYTEST)

# Compilers and an emulator for the tests of the tvm targets, and OpenSSH for those of devices, where they are missing
# and may be installed.
system-packages:
	@scripts/system-packages.sh

# The tests of greencc[finetune] need PyTorch, in an environment of its own; TORCH chooses which, as below.
test-finetune: $(VENV)/finetune/.ready
	$(VENV)/finetune/bin/python -m pytest -q tests/recover tests/passes/prune

# The tests of greencc[ray] need Ray (800 MB), in an environment of its own.
test-ray: $(VENV)/ray/.ready
	$(VENV)/ray/bin/python -m pytest -q tests/execution tests/compiler/test_evaluation.py

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Peers get an environment of their own. BENCH_MODELS=FOLDER adds models; ARGS are passed on (--quick, --only build).
# Peers that need PyTorch are left out unless asked for: PEERS=all, or some of them: PEERS="olive quark". Each has an
# environment of its own (2 GB with PyTorch for the CPU, 6 GB with PyPI's default: TORCH=torch==2.13.0+cpu chooses).
PEERS ?=
TORCH ?= torch
TORCH_PEERS := aimet olive quark torch
aimet_PACKAGES := aimet-onnx
# Olive's telemetry imports requests, which its metadata does not ask for.
olive_PACKAGES := olive-ai requests
quark_PACKAGES := amd-quark
# Torch-Pruning and TensorLy, which the compression benchmark compares with; greencc's fine-tuning runs here as well.
torch_PACKAGES := torch-pruning tensorly onnx2torch -e .

bench: $(VENV)/bench/.ready $(patsubst %,$(VENV)/bench-%/.ready,$(if $(filter all,$(PEERS)),$(TORCH_PEERS),$(PEERS)))
	$(VENV)/bench/bin/python -m benchmarks.run $(if $(PEERS),--peers $(PEERS)) $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e .
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e ".[test]"
	@touch $@

$(VENV)/.full: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e ".[test,rtx]"
	@touch $@

$(VENV)/.lint: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e ".[lint,test]"
	@touch $@

$(VENV)/bench/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)/bench
	$(VENV)/bench/bin/python -m pip --disable-pip-version-check install --quiet -e ".[bench,images]"
	@touch $@

$(VENV)/finetune/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)/finetune
	$(VENV)/finetune/bin/python -m pip --disable-pip-version-check install --quiet "$(TORCH)" -e ".[finetune,test]"
	@touch $@

$(VENV)/ray/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)/ray
	$(VENV)/ray/bin/python -m pip --disable-pip-version-check install --quiet -e ".[ray,test]"
	@touch $@

$(TORCH_PEERS:%=$(VENV)/bench-%/.ready): $(VENV)/bench-%/.ready:
	$(PYTHON) -m venv $(VENV)/bench-$*
	$(VENV)/bench-$*/bin/python -m pip --disable-pip-version-check install --quiet "$(TORCH)" onnxruntime $($*_PACKAGES)
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
