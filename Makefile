# Each target does its own set-up. `make demo` is the main job; `make test`, `make check`, `make bench`.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: demo test check bench format clean

demo: $(VENV)/ready
	$(BIN)/aid make recipes/starter.toml --out runs/starter
	@echo "The release: runs/starter/release (card.md, samples/), the scores: runs/starter/report/report.md"

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(VENV)/ready
	$(BIN)/ruff format --check src tests starter benchmarks
	$(BIN)/ruff check src tests starter benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src tests docs starter recipes benchmarks README.md CONTRIBUTING.md

bench: $(VENV)/ready
	@for script in benchmarks/startup.py benchmarks/stages.py; do $(BIN)/python $$script || exit 1; done

format: $(VENV)/ready
	$(BIN)/ruff check --fix src tests starter benchmarks
	$(BIN)/ruff format src tests starter benchmarks

clean:
	rm -rf runs build dist

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
