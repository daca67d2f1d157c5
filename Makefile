PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/ready  ## set up .venv and run the main job on the embedded default
	$(BIN)/prism-hw demo --output out/demo

test: .venv/ready  ## everything that needs no root, GPU or Jetson
	$(BIN)/python -m pytest -n 2 --ignore=tests/hw --ignore=tests/contract
	$(BIN)/python -m pytest tests/hw tests/contract  # alone: they measure, and look for leftovers on the whole machine

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch and torchvision first and together: the rest must not choose another pair
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch torchvision
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv out dist
