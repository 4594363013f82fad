# `make help` lists the targets. Each sets up .venv first.

PY ?= python3

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := .rcusim/demo
PEERS := .venv-peers

.PHONY: help native venv test test-slow check demo golden matrix proofs bench bench-jobs bench-peers clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(STAMP)  ## create .venv and install rcusim into it, editable, with the dev tools

# Runs again only when pyproject.toml changes.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/rcusim-compile
	@touch $@

# After a change in sim/ the Python files are used, until this has been run again: tests do, at once,
# and whatever takes long or is measured compiles first.
native: $(STAMP)  ## compile the engine's hot modules, if there is a C compiler
	@$(BIN)/rcusim-compile

test: $(STAMP)  ## run the fast tests
	$(BIN)/pytest -n 2 -m "not slow"

# pytest exits with 5 when it selects no test.
test-slow: native  ## run the slow tests
	@$(BIN)/pytest -n 2 -m slow || { code=$$?; \
	    test $$code -eq 5 && echo "make test-slow: there are no slow tests yet" || exit $$code; }

check: $(STAMP)  ## lint, formatting, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Exit codes of rcusim: 0 proved or replay agrees, 1 finding, 3 inconclusive. The races of v5.10
# have to be found, and the kernels that have the fixes have to be proved: anything else fails.
demo: native  ## find a race of v5.10, replay its trace, prove that v6.8 has it no more
	@rm -rf $(DEMO)
	@echo "== Explore inner_map_replace on the v5.10 model: a race is to be found =="
	@$(call expect,1,$(BIN)/rcusim explore inner_map_replace --kernel 5.10 --out $(DEMO))
	@echo "== Replay the trace: the same steps, the same finding =="
	@traces=$$(find $(DEMO) -name '*.jsonl' | sort); \
	    test -n "$$traces" || { echo "make demo: no trace in $(DEMO)" >&2; exit 1; }; \
	    for trace in $$traces; do $(call expect,0,$(BIN)/rcusim replay "$$trace") || exit 1; done
	@echo "== Explore inner_map_replace on the v6.8 model: there is nothing, in any interleaving =="
	@$(call expect,0,$(BIN)/rcusim explore inner_map_replace --kernel 6.8)
	@echo "== Explore tailcall_load_window on the v5.10 model: a tail call is lost =="
	@$(call expect,1,$(BIN)/rcusim explore tailcall_load_window --kernel 5.10 --out $(DEMO))
	@echo "== Explore tailcall_load_window on the v6.7 model: there is nothing, in any interleaving =="
	@$(call expect,0,$(BIN)/rcusim explore tailcall_load_window --kernel 6.7)
	@echo "== The demo went as expected =="

# $(call expect,CODE,COMMAND): COMMAND has to exit with CODE.
expect = { $(2); code=$$?; test $$code -eq $(1) || \
    { echo "make demo: expected exit code $(1), got $$code" >&2; exit 1; }; }

golden: $(STAMP)  ## record the golden traces and their reports anew
	$(BIN)/python -m tests.golden

matrix: native  ## measure docs/matrix.md anew; fails if a row is not as expected
	$(BIN)/rcusim matrix --write docs/matrix.md

proofs: native  ## search all that is expected to be clean, for docs/proofs.md; fails if it is not
	$(BIN)/python -m tests.proofs --again 300 --write docs/proofs.md

bench: native  ## time complete searches, beside native tools, and the engine, beside a bare loop
	$(BIN)/python -m tests.bench_search
	$(BIN)/python -m tests.bench_rcu
	$(BIN)/python -m tests.bench

bench-jobs: native  ## time a complete search in one process and in two
	$(BIN)/python -m tests.bench_jobs

bench-peers: native $(PEERS)/.installed  ## time complete searches beside other tools for Python
	$(BIN)/python -m tests.bench_peers

# They never get into .venv. One that cannot be had is missing from the table, which says so, and
# is asked for again next time.
$(PEERS)/.installed: tests/peers/requirements.txt
	@test -x $(PEERS)/bin/python || $(PY) -m venv $(PEERS)
	@touch $@; for peer in $$(cat $<); do \
	    $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $$peer || \
	    { rm -f $@; echo "make bench-peers: $$peer cannot be installed" >&2; }; done

clean:  ## remove .venv, .venv-peers, caches and .rcusim
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .rcusim
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
