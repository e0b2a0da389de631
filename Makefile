# make run: the embedded comparison. make test: the tests. Both make the environment first, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: run test test-all chromium docs check format clean

run: $(INSTALLED)
	$(BIN)/fedpgp compare

test: $(INSTALLED)
	$(BIN)/pytest -m "not slow" -n auto --maxprocesses 4

# The fast tests, those that only take longer, and, one after the other, those in tests/slow: they build the wheel, start
# processes or interrupt them, or look at pages in a browser.
test-all: test chromium
	$(BIN)/pytest -m slow -n auto --maxprocesses 4 --ignore tests/slow
	$(BIN)/pytest tests/slow

# The browser of the pages' tests: Debian's, where none is there.
chromium:
	command -v chromium >/dev/null || { apt-get update -q && apt-get install -y -q --no-install-recommends chromium; }

check: $(INSTALLED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The documentation as a site, for a browser: site/index.html. Broken links and anchors end it.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

$(INSTALLED): pyproject.toml constraints.txt tests/references.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -r tests/references.txt
	touch $@

clean:
	rm -rf .venv build dist site .pytest_cache .hypothesis .mypy_cache .ruff_cache
