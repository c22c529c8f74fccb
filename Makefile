# Everything sets itself up: `make demo` and `make test` are all that a fresh machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: test-long outcomes asynchrony help demo unit test faults soak check format bench bench-views bench-rules clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One virtual environment for all; made anew when the project's dependencies change.
$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tidemill needs Python 3.11 or later")'
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing tidemill and what it needs (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(VENV)/ready ## January's flights through the whole pipeline, in about a minute; ARGS="--days 2 --headless ..."
	@$(BIN)/tidemill demo $(ARGS)

unit: $(VENV)/ready ## what takes no broker and little time: most unit and contract tests, in some 20 s
	@$(BIN)/python -m pytest -n 2 -q -p no:schemathesis -m "not slow and not long and not kafka and not browser" \
		tests/unit tests/contracts tests/project $(ARGS)

test: $(VENV)/ready ## unit, contract and system tests, two at a time; the last on a real Kafka (Java 17, Maven) and a real Redis
	@$(BIN)/python -m pytest -n 2 $(ARGS)

test-long: $(VENV)/ready ## what make test leaves out because a shorter test shows it too: a little of every fault at once, other months
	@$(BIN)/python -m pytest -m long $(ARGS)

faults: $(VENV)/ready ## every fault at full length, and the mutation check (an hour); writes docs/faults.md
	@$(BIN)/python tests/faults/run.py $(ARGS)

soak: $(VENV)/ready ## three million events (40 minutes); writes docs/soak.md
	@$(BIN)/python tests/faults/soak.py $(ARGS)

outcomes: $(VENV)/ready ## what views are worth: the same models with and without them (a minute; ARGS=--year half an hour)
	@$(BIN)/python benchmarks/outcomes.py $(ARGS)

asynchrony: $(VENV)/ready ## how many vectors on Kafka differ from a backtest's, and by how much (minutes)
	@$(BIN)/python benchmarks/asynchrony.py $(ARGS)

check: $(VENV)/ready ## format, lint, layers and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy

format: $(VENV)/ready ## put the code into the one format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench: $(VENV)/ready ## CPU per event of each service on a real Kafka; ARGS="--json bench.json ..."
	@$(BIN)/python -m benchmarks.pipeline $(ARGS)

bench-views: $(VENV)/ready ## CPU, memory and round trips of views, by aggregates, entities and batches; ARGS="--only memory ..."
	@$(BIN)/python -m benchmarks.views $(ARGS)

bench-rules: $(VENV)/ready ## CPU of the validator, by the number of rules and the kind of message
	@$(BIN)/python -m benchmarks.rules $(ARGS)

clean: ## remove what the targets above made
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .tidemill
