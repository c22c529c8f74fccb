# Everything sets itself up: `make demo` and `make test` are all that a fresh machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Where compiled modules may not be kept, each of the hundreds of processes that a test run starts compiles all it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: test-long outcomes asynchrony help demo unit test faults fuzz soak check lock package rooms format bench bench-peers bench-growth bench-views bench-rules bench-gateway docs clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# One virtual environment, from locked versions: for the demo what the demo needs, for all else that and the tools.
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --python-version 3.11
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# uv takes a sixth of pip's time. pip does it where uv can't: it alone reads pip.conf, with a mirror's address.
install = $(BIN)/uv pip install --quiet --python $(BIN)/python $(1) || { echo "uv can't: pip does it"; $(PIP) $(1); }

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tidemill needs Python 3.11 or later")'
	@echo "making $(VENV)"; $(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes -r requirements/uv.lock || true

$(VENV)/demo: requirements/demo.lock pyproject.toml | $(BIN)/python
	@echo "installing tidemill and what its demo needs (once)"
	@$(call install,--require-hashes -r $<)
	@$(call install,--no-deps -e .)
	@touch $@

$(VENV)/dev: requirements/dev.lock pyproject.toml | $(BIN)/python
	@echo "installing tidemill and what its tests need (once)"
	@$(call install,--require-hashes -r $<)
	@$(call install,--no-deps -e .)
	@touch $(VENV)/demo $@

demo: $(VENV)/demo ## January's flights through the whole pipeline, in about a minute; ARGS="--days 2 --headless ..."
	@$(BIN)/tidemill demo $(ARGS)

unit: $(VENV)/dev ## what takes no broker and little time: most unit and contract tests, in 20 s
	@$(BIN)/python -m pytest -n 2 -q -p no:schemathesis -m "not slow and not long and not kafka and not browser" \
		tests/unit tests/contracts tests/project $(ARGS)

test: $(VENV)/dev ## unit, contract and system tests, three at a time; the last on a real Kafka (Java 17, Maven) and a real Redis
	@$(BIN)/python -m pytest -n 3 $(ARGS)

test-long: $(VENV)/dev ## what make test leaves out because a shorter test shows it too: other months, more of the same
	@$(BIN)/python -m pytest -m long $(ARGS)
	@TIDEMILL_DEEP_TESTS=1 $(BIN)/python -m pytest -m "hypothesis and not long" $(ARGS)

faults: $(VENV)/dev ## every fault at full length, and the mutation check (an hour and a half); writes docs/faults.md
	@$(BIN)/python tests/faults/run.py $(ARGS)

fuzz: $(VENV)/dev ## all decoders on random schemas and damaged bytes, ten minutes; ARGS="--minutes 1 --seed 7"
	@$(BIN)/python tests/faults/fuzz.py $(ARGS)

soak: $(VENV)/dev ## three million events (40 minutes); writes docs/soak.md
	@$(BIN)/python tests/faults/soak.py $(ARGS)

outcomes: $(VENV)/dev ## what views are worth: the same models with and without them (a minute; ARGS=--year half an hour)
	@$(BIN)/python benchmarks/outcomes.py $(ARGS)

asynchrony: $(VENV)/dev ## how many vectors on Kafka differ from a backtest's, and by how much (minutes)
	@$(BIN)/python benchmarks/asynchrony.py $(ARGS)

check: $(VENV)/dev ## format, lint, layers, types and spelling
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/mypy
	@$(BIN)/codespell README.md CONTRIBUTING.md docs services

lock: $(VENV)/dev ## lock the versions that pyproject.toml allows today, for make itself; ARGS="--upgrade" for newer ones
	@$(LOCK) --extra dev --output-file requirements/dev.lock pyproject.toml $(ARGS)
	@$(LOCK) --extra demo --constraint requirements/dev.lock --output-file requirements/demo.lock pyproject.toml
	@echo uv | $(LOCK) --constraint requirements/dev.lock --output-file requirements/uv.lock -

package: $(VENV)/dev ## the wheel and the source distribution, in dist/
	@$(BIN)/uv build --quiet

rooms: $(VENV)/dev ## the rooms of the package and the import levels that they stand on
	@$(BIN)/python tests/support/rooms.py

format: $(VENV)/dev ## put the code into the one format
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

bench: $(VENV)/dev ## CPU per event of each service on a real Kafka; ARGS="--json bench.json ..."
	@$(BIN)/python -m benchmarks.pipeline $(ARGS)

# Peers have a virtual environment of their own: their versions of Kafka's clients are not ours, and no lock has them.
PEERS = .cache/peers-venv
$(PEERS)/done: benchmarks/peers/requirements.txt | $(BIN)/python
	@echo "making $(PEERS)"; $(BIN)/python -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-peers: $(VENV)/dev $(PEERS)/done ## Tidemill beside its peers on the same work (half an hour); ARGS="--runs 1 --only quix-own"
	@$(BIN)/python -m benchmarks.peers.run $(ARGS)

bench-growth: $(VENV)/dev ## how cost grows with entities, waiting predictions and models (ten minutes)
	@$(BIN)/python -m benchmarks.growth $(ARGS)

bench-views: $(VENV)/dev ## CPU, memory and round trips of views, by aggregates, entities and batches; ARGS="--only memory ..."
	@$(BIN)/python -m benchmarks.views $(ARGS)

bench-gateway: $(VENV)/dev ## how long the gateway takes to answer, at an even rate, by vegeta; ARGS="--rate 1000"
	@$(BIN)/python -m benchmarks.gateway $(ARGS)

bench-rules: $(VENV)/dev ## CPU of the validator, by the number of rules and the kind of message
	@$(BIN)/python -m benchmarks.rules $(ARGS)

docs: $(VENV)/dev ## the documentation as a site, in build/site; every link and anchor is checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html; with search: $(BIN)/python -m http.server -d build/site"

clean: ## remove what the targets above made
	rm -rf $(VENV) build .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .tidemill
