# Two commands matter: `make demo` and `make test`. Both set up .venv first, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
unexport PYTHONDONTWRITEBYTECODE  # compiled modules halve every start-up

.PHONY: setup demo test test-all lint lock clean

setup: $(VENV)/ready

# uv installs the lock in about a minute; it is fetched into the environment when the machine has none.
$(VENV)/ready: requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install -q --disable-pip-version-check uv
	@echo "installing the locked environment (about a minute, 8 GB with CUDA libraries)"
	@UV=$$(command -v uv || echo $(BIN)/uv); \
	  $$UV pip install -q --python $(BIN)/python --no-deps -r requirements.lock && \
	  $$UV pip install -q --python $(BIN)/python --no-deps -e .
	@touch $@

demo: setup
	@$(BIN)/medsynx demo
	@$(BIN)/medsynx demo --images

test: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: setup lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint docker/*.Dockerfile

lock:
	UV=$$(command -v uv || echo $(BIN)/uv); \
	  $$UV pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header -q -o requirements.lock

clean:
	rm -rf $(VENV) medsynx-demo medsynx-demo-images .pytest_cache .mypy_cache .ruff_cache
