# make demo            train, sample, classify and segment on the embedded shapes
# make test            the fast suite;  make test SLOW=1  the whole one
# Both set up .venv first, once; a changed setup.py sets it up again.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

SLOW ?=

.PHONY: install demo test lint results clean

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

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: $(STAMP)
	$(BIN)/python scripts/make_results.py

clean:
	rm -rf .venv build *.egg-info runs/demo
