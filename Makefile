# make demo            train, sample, classify and segment on the embedded shapes
# make test            the fast suite;  make test SLOW=1  the whole one
# Both set up .venv first, once; a changed setup.py sets it up again.
# make test-lowest     the fast suite with the lowest versions that setup.py allows, in .venv-lowest (Python 3.10 to 3.12)
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

SLOW ?=

.PHONY: install demo test test-lowest lint results clean

install: $(STAMP)

$(STAMP): setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "python 3.10 or newer is needed; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python scripts/demo.py

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto $(if $(SLOW),,-m 'not slow')

# 3.13 has no wheels of some of the lowest versions. Newest tools, the oldest of what is installed with the packages.
test-lowest:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13) and "python 3.10, 3.11 or 3.12 is needed; name one: make test-lowest PYTHON=python3.12")'
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade pip setuptools
	.venv-lowest/bin/python -m pip install --quiet --constraint tests/lowest.txt --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -q --numprocesses auto -m 'not slow'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: $(STAMP)
	$(BIN)/python scripts/make_results.py

clean:
	rm -rf .venv .venv-lowest build dist *.egg-info runs/demo
