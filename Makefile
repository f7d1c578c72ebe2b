# make demo   the whole loop on this machine: broker, aggregator, twelve devices, a signed release, a report;
#             DEMO=churn (default), intents, demand, satisfaction or recommend
# make test   every check: format, lint, types, import contracts, tests
# make bench  the published figures, as JSON
# Each makes its own environment first. torch comes first, with plain pip, so that no GPU packages follow it.

PYTHON ?= python3
VENV   ?= .venv
DEMO   ?= churn
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test lint bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "chorale needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,aggregator,author,demo,dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/aggregator demo $(DEMO) --report demo-report $(DEMO_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

bench: $(STAMP)
	$(BIN)/python benchmarks/secure_aggregation.py --json
	$(BIN)/python benchmarks/footprint.py --json
	$(BIN)/python benchmarks/accounting.py --json
	$(BIN)/python benchmarks/dp_sgd.py --json
	$(BIN)/python benchmarks/attacks.py --quick --json
	$(BIN)/python benchmarks/choosing.py --quick --json

clean:
	rm -rf $(VENV) demo-report build *.egg-info
