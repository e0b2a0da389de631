# make run: run the comparison on photographs. make test: run the fast tests. The first call makes the environment.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4

.PHONY: run test test-slow test-by-hand test-all ci chromium docs check format clean

run: $(INSTALLED)
	$(BIN)/fedpgp compare -c photographs --methods zero-shot,local,promptfl,fedkgcoop,promptfolio,fedpgp

test: $(INSTALLED)
	$(PYTEST) --dist worksteal -m "not slow and not by_hand"

# Tests that share a resource, such as a browser or the ports of the machine, run one after the other: see docs/testing.md.
test-slow: $(INSTALLED) chromium
	$(PYTEST) --dist loadgroup -m "slow and not by_hand"

test-by-hand: $(INSTALLED) chromium
	$(PYTEST) --dist loadgroup -m by_hand

test-all: test test-slow test-by-hand

# Checks and tests of every change.
ci: check test test-slow

# Browser from Debian, for tests of pages. These tests are skipped if it is missing and cannot be installed without root.
chromium:
	@command -v chromium >/dev/null || { apt-get update -q && apt-get install -y -q --no-install-recommends chromium; } \
		|| echo "chromium could not be installed. Tests of pages will be skipped."

check: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs src tests tools
	$(BIN)/python tools/plain_english.py
	$(BIN)/python tools/results_pages.py --check

format: $(INSTALLED)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# Build the documentation site, site/index.html. A broken link or anchor is an error, and a figure that no result file has.
docs: $(INSTALLED)
	$(BIN)/python tools/results_pages.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(INSTALLED): pyproject.toml constraints.txt tests/references.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --upgrade --target $(VENV)/references -r tests/references.txt
	touch $@

clean:
	rm -rf .venv .pythons build dist site .pytest_cache .hypothesis .mypy_cache .ruff_cache
