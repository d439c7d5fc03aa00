# One-line commands. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Folder with real data sets; tests that want one skip, saying so, without it.
DATA ?=

.DEFAULT_GOAL := help
.PHONY: help demo serve test quick fuzz check format proto bench soak clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# A stamp per set of dependencies, so that `make demo` never installs torch.
$(VENV)/.runtime: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the runtime dependencies into $(VENV)" >&2
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing everything for training and tests into $(VENV)" >&2
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[train,loadtest,dev]'
	@touch $@ $(VENV)/.runtime

demo: $(VENV)/.runtime ## start a server on the embedded model and rank a sample timeline
	@$(BIN)/timeline-ranker demo

serve: $(VENV)/.runtime ## the same server, kept running: gRPC on 8001, metrics on 8002
	@$(BIN)/timeline-ranker serve --grpc-port 8001 --metrics-port 8002

test: $(VENV)/.dev ## every test
	@TIMELINE_RANKER_DATA=$(DATA) $(BIN)/pytest

quick: $(VENV)/.dev ## the tests that need no foreign binaries and little time
	@$(BIN)/pytest -m 'not foreign and not slow' -n auto --dist loadfile

fuzz: $(VENV)/.dev ## odd bytes on a real server; CALLS=how many, SEED=where to begin
	@TIMELINE_RANKER_FUZZ_CALLS=$(or $(CALLS),200000) TIMELINE_RANKER_FUZZ_SEED=$(or $(SEED),1) $(BIN)/pytest tests/fuzz

check: $(VENV)/.dev ## lint, formatting, types, freshness of the generated code
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && proto/generate.sh "$$fresh" \
	  && diff -r -x __pycache__ "$$fresh" service/generated || { echo "service/generated is stale: make proto" >&2; exit 1; }

format: $(VENV)/.dev ## what `make check` would have formatted
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

proto: $(VENV)/.dev ## regenerate service/generated from proto/
	@proto/generate.sh

bench: $(VENV)/.runtime ## server cost against its floor; BENCH_JSON=path for the file
	@$(BIN)/python -m loadtest.bench --json $(or $(BENCH_JSON),bench.json)

soak: $(VENV)/.runtime ## load on a server that must stay as it is; MINUTES=10 for longer than one, or REQUESTS=1000000
	@$(BIN)/python -m loadtest.soak $(if $(REQUESTS),--requests $(REQUESTS),--minutes $(or $(MINUTES),1))

clean: ## remove what was made, the environment included
	rm -rf $(VENV) build dist *.egg-info runs bench.json
