# Each target does its own set-up. `make demo` is the main job; `make test`, `make check`, `make fuzz`,
# `make kills`, `make bench`.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
BENCHMARKS := startup stages files data prompts samplers drawing studio training merging blending

.PHONY: demo test fuzz kills check bench format clean

demo: $(VENV)/ready
	$(BIN)/aid make recipes/starter.toml --out runs/starter
	@echo "The release: runs/starter/release (card.md, samples/), the scores: runs/starter/report/report.md"

# The fuzzing, which is for as long as one likes, is a target of its own.
test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --ignore tests/fuzz

# Every reader is fed with damaged files for half a minute: `make fuzz SECONDS_EACH=600 INPUTS_EACH=1000000 SEED=7`
# for longer, and for other files. The inputs are counted so that a faster machine meets none that a slower one
# never saw. Two readers at a time; a failure names the seed and the smallest file found.
SECONDS_EACH ?= 30
INPUTS_EACH ?= 20000
SEED ?= 0

fuzz: $(VENV)/ready
	OMP_NUM_THREADS=1 AID_FUZZ_SECONDS=$(SECONDS_EACH) AID_FUZZ_INPUTS=$(INPUTS_EACH) AID_FUZZ_SEED=$(SEED) \
	$(BIN)/python -m pytest -n 2 tests/fuzz

# A training killed with -9 at 100 random points, three minutes; `make test` does it at 10.
KILLS ?= 100

kills: $(VENV)/ready
	OMP_NUM_THREADS=1 AID_KILLS=$(KILLS) $(BIN)/python -m pytest tests/train/test_resume.py -k killed

check: $(VENV)/ready
	$(BIN)/ruff format --check src tests starter benchmarks hatch_build.py
	$(BIN)/ruff check src tests starter benchmarks hatch_build.py
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src tests docs starter recipes benchmarks README.md CONTRIBUTING.md

# k-diffusion asks for much that its samplers don't need, so it comes without.
bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt scipy
	$(BIN)/python -m pip install --quiet --no-deps k-diffusion torchdiffeq torchsde trampoline
	@for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done

format: $(VENV)/ready
	$(BIN)/ruff check --fix src tests starter benchmarks
	$(BIN)/ruff format src tests starter benchmarks

clean:
	rm -rf runs build dist

$(VENV)/ready: pyproject.toml constraints.txt hatch_build.py $(wildcard src/aid/*/*/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
