# Everything is set up in .venv with nothing but python3; the second time it is found ready.
# Another interpreter: make demo PYTHON=/path/to/python3. What pip needs (an index, a proxy): the environment.

PYTHON ?= python3
BIN := .venv/bin
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test check format benchmarks results

help:
	@echo "make demo        record, train, plan through a door, report: runs/demo/report.html"
	@echo "make test        every test, the slow ones and the README's code too"
	@echo "make check       format, lint, types, import floors and the fast tests"
	@echo "make format      format the source and mend what the linter can"
	@echo "make results     the README's tables, from runs/demo"
	@echo "make benchmarks  the tables behind the speed claims"

demo: .venv/.base
	$(BIN)/jepaplan demo runs/demo

# One process and one thread a core: small tests gain nothing from threads.
test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n auto --dist loadfile

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pages of docs/results and the README's tables, from the demo's run.
results: demo
	$(BIN)/jepaplan evaluate runs/demo --instances WallBig-demo --page docs/results/demo.md
	$(BIN)/jepaplan evaluate runs/demo --instances WallBig-final --no-report --page docs/results/demo_final_instances.md
	$(BIN)/python docs/results/into_readme.py

benchmarks: .venv/.dev
	$(BIN)/jepaplan train wall_big_paths --run runs/paths
	$(BIN)/python benchmarks/precision.py runs/paths
	$(BIN)/python benchmarks/precision.py runs/paths --budget-ms 20
	for name in planning planners quasimetric recording training video; do \
	  $(BIN)/python benchmarks/$$name.py || exit 1; done

.venv/.python:
	@command -v $(PYTHON) >/dev/null 2>&1 || \
	  { echo "python3 is missing: install Python 3.11 or newer, or write make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$$($(PYTHON) --version) is too old: install 3.11 or newer, or write make PYTHON=/path/to/it"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) lacks its venv module: install it (Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# torch first and alone: it is nine tenths of the download, and an interrupted one is not begun again.
.venv/.base: .venv/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install torch
	$(BIN)/python -m pip install -e .
	@touch $@

.venv/.dev: .venv/.base
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@
