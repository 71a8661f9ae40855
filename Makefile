# `make book` builds the textbook and opens it; `make test` proves that it holds. `make` alone lists the rest.
#
# Everything goes into .venv, at the versions pinned in constraints.txt. `make book` installs no torch.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
INDEX := book/_build/html/index.html
GOAL := $(firstword $(MAKECMDGOALS))

# Two workers, one thread each, so that they do not fight over two cores. The offline guard reaches
# every child through PYTHONPATH; a notebook's cells must stay on one worker, hence loadfile. The tests
# say in tests/conftest.py what stays together.
PYTEST := OMP_NUM_THREADS=1 PYTHONPATH="$(CURDIR)/tests/offline$${PYTHONPATH:+:$$PYTHONPATH}" \
	$(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help book test notebooks lab lint clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/  make \1@\2/p' Makefile | awk -F@ '{ printf "%-18s %s\n", $$1, $$2 }'

book: $(VENV)/.book  ## build the online book and open it
	@# After a warning Sphinx would not read the page again, and so not repeat the warning.
	@$(BIN)/jupyter-book build book -q -W --keep-going >/dev/null || { rm -rf book/_build; exit 1; }
	@echo "The book is built: $(CURDIR)/$(INDEX)"
	@if [ -z "$$CI" ] && { [ "$$(uname)" = Darwin ] || [ -n "$$DISPLAY$$WAYLAND_DISPLAY" ]; }; then \
		$(BIN)/python -c "import pathlib, webbrowser; webbrowser.open(pathlib.Path('$(INDEX)').resolve().as_uri())"; \
	fi

test: $(VENV)/.full  ## run every test, then every notebook
	$(PYTEST) --dist loadgroup tests
	$(PYTEST) --nbval-lax --nbval-current-env --nbval-cell-timeout 120 book/notebooks solutions

notebooks: $(VENV)/.full  ## regenerate the notebooks from their .md sources (ONLY=ch02 for some)
	@$(BIN)/python -m interp_edu notebooks $(ONLY)

lab: $(VENV)/.full  ## open the exercises in JupyterLab
	@$(BIN)/jupyter lab exercises

lint: $(VENV)/.full  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove what was built (delete .venv yourself to install anew)
	rm -rf book/_build build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ---- .venv: one stamp for the book, one for everything

# Does nothing for a healthy .venv. One that was interrupted half-way, or whose Python is gone, is made again.
define make_venv
@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	$(PYTHON) -c 'pass' 2>/dev/null || { \
		echo "No Python: '$(PYTHON)' does not run. Install Python 3.11 or newer, or name yours: make $(GOAL) PYTHON=python3.12" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python is too old: $$($(PYTHON) --version 2>&1), and 3.11 or newer is needed. Name another: make $(GOAL) PYTHON=python3.12" >&2; exit 1; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "Python's venv module is missing. Install it (Debian, Ubuntu: apt install python3-venv) and run make $(GOAL) again" >&2; exit 1; }; \
	echo "Making .venv with $$($(PYTHON) --version 2>&1) ..."; \
	rm -rf $(VENV); $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python could not make .venv: see the lines above" >&2; exit 1; }; }
endef

# $(1): what pip is to install
define pip_install
@echo "Installing into .venv, once: $(2) ..."
@$(BIN)/python -m pip install -c constraints.txt $(1) >$(LOG) 2>&1 || { \
	if grep -qiE 'connection|name resolution|unreachable|timed out|ProxyError' $(LOG); \
	then echo "No network: pip could not reach its package index. Go online (or set PIP_INDEX_URL) and run make $(GOAL) again; log: $(LOG)"; \
	else echo "The installation failed: $$(grep -E '^ *ERROR: ' $(LOG) | tail -1). Mend that and run make $(GOAL) again; log: $(LOG)"; \
	fi >&2; exit 1; }
endef

$(BIN)/python:
	$(make_venv)

$(VENV)/.book: $(BIN)/python pyproject.toml constraints.txt
	$(make_venv)
	@$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['book'], sep='\n')" >$(VENV)/book.txt
	$(call pip_install,-r $(VENV)/book.txt,what the book needs (a minute))
	@touch $@

$(VENV)/.full: $(BIN)/python pyproject.toml constraints.txt
	$(make_venv)
	$(call pip_install,-e '.[test$(COMMA)book$(COMMA)course]',the package with torch and all tools (minutes))
	@touch $(VENV)/.book $@

COMMA := ,
