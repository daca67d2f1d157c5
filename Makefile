PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2

.PHONY: demo test measure lint clean

demo: .venv/ready  ## set up .venv and run the main job on the embedded default
	$(BIN)/prism-hw demo --output out/demo

test: .venv/ready  ## what is right or wrong, whatever else the machine does; no GPU or Jetson, and without root fewer
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

measure: .venv/ready  ## times and rates, each beside a reference; skipped where the machine is too busy to tell
	$(BIN)/python -m pytest -m measure

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
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
