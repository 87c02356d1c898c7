# Everything a person does here. `make help` lists it.
PYTHON ?= python3
# On Linux without a GPU, plain PyPI brings gigabytes of CUDA along; to avoid that:
#   make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := .venv/bin
READY := .venv/installed
OUT ?= pinxit-demo
BASE ?= pocket

.PHONY: help install demo bench test accelerator slow check lint duplicates quick fix figures package site clean
.DEFAULT_GOAL := help

# Two workers; the tests of a module stay in one worker, so that its fixtures are made once. One
# thread each: the base models of the tests are too small for more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadscope --durations=25

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

install: $(READY) ## make .venv with everything in it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "pinxit needs Python 3.11 or newer; try: make PYTHON=python3.12 install" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY) ## train a subject and a style, and write report.html (8 minutes)
	$(BIN)/pinxit demo --out $(OUT)

bench: $(READY) ## times and memory against a plain loop (pocket: 5 minutes; BASE=sd15: an hour)
	$(BIN)/python -m lab.speed --base $(BASE)

test: $(READY) ## every test but the slow group and the accelerator group (12 minutes on two cores)
	$(PYTEST) -m "not slow and not accelerator"

accelerator: $(READY) ## the accelerator group, on a stand-in that is built first (6 minutes)
	$(PYTEST) --dist loadgroup -m accelerator tests/accelerator

slow: $(READY) ## the slow group: what the method must reach, over many subjects
	$(PYTEST) -m slow

check: $(READY) ## before each commit (3 minutes on two cores)
	@$(MAKE) --no-print-directory -j2 lint quick

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python tools/budget.py
	$(BIN)/python tools/tracked_size.py

duplicates: $(READY) ## six equal lines in two places; too slow for `make check`
	$(BIN)/pylint --disable=all --enable=duplicate-code --min-similarity-lines=6 \
	  --ignore-imports=y --ignore-docstrings=y --ignore-comments=y src/pinxit

# The list of durations is empty: a test that it shows is to be marked as long.
quick: $(READY)
	$(PYTEST) --durations-min=1.5 -q --hypothesis-profile=quick -m "not slow and not long and not accelerator"

fix: $(READY) ## format, and fix what the linter can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

package: $(READY) ## wheel and sdist in dist/, tried in a clean environment (1 minute)
	$(BIN)/python tools/package.py

site: $(READY) ## the website of the docs, with the reference of the Python functions, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

figures: $(READY) ## every figure the docs quote, as JSON in docs/figures
	$(BIN)/python -m lab.figures $(NAMES)

clean: ## take away what can be made again, but no run and no demo
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist
