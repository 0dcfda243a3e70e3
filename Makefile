# Everything a newcomer needs: `make demo` and `make test` set themselves up on a bare machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test check studies bench docs setup browser redis clean

setup: $(STAMP)

# PyTorch goes first and pinned: its plain name would fetch gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	touch $(STAMP)

# The report is opened in a real browser; without one (and without the right to install one) those tests say so and skip.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || true

# The summary cache is tested against a real Redis server; without one those tests say so and skip.
redis:
	@command -v redis-server >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server >/dev/null; } || true

demo: setup
	$(BIN)/rote demo

test: setup browser redis
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: setup
	$(BIN)/ruff check .
	$(BIN)/pyright

studies: setup
	@status=0; for slug in $$($(BIN)/python -c "from rote.studies import study_slugs; print(*study_slugs())"); do \
	  $(BIN)/rote study run $$slug || status=1; done; exit $$status

bench: setup
	$(BIN)/python benchmarks/audit_pass.py
	$(BIN)/python benchmarks/greedy_without_generating.py
	$(BIN)/python benchmarks/memory.py

docs: export NO_MKDOCS_2_WARNING = 1
docs: setup
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build site .pytest_cache .ruff_cache
