# Everything runs from .venv, which the first target that needs it builds from constraints.txt.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check setup constraints clean

# Nothing here reports home: not Prefect, not MLflow, not what they import.
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export VIDEOS
# Without kept bytecode every launched process compiles what it imports: 7 CPU-seconds more.
unexport PYTHONDONTWRITEBYTECODE

help:  ## show this list
	@echo "videoldm: video latent diffusion, from a folder of videos to a sampled video"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'
	@echo
	@echo "  VIDEOS=folder       make demo: your own videos instead of generated ones"
	@echo "  PYTHON=python3.12   the Python 3.11 or 3.12 that .venv is made from"

demo: $(READY)  ## train the tiny cascade on the CPU and sample a video (VIDEOS=folder for your own)
	@$(BIN)/videoldm run tiny $${VIDEOS:+"videos=$$VIDEOS"}

test: $(READY)  ## run the tests
	@$(BIN)/python -m pytest

check: $(READY)  ## lint, formatting, import rules and types
	@failed=0; \
	for tool in "ruff check ." "ruff format --check ." lint-imports "pyright --pythonpath $(BIN)/python"; do \
		echo "$$tool"; $(BIN)/$$tool || failed=1; \
	done; exit $$failed

setup: $(READY)  ## install everything into .venv

$(READY): pyproject.toml constraints.txt
	@for python in $(or $(PYTHON),python3 python3.12 python3.11); do \
		"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || continue; \
		"$(BIN)/python" -c 'import pip' 2>/dev/null || "$$python" -m venv --clear $(VENV) || exit 1; \
		echo "Setting up $(VENV): about 7 GB, once ..."; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv && \
		{ VIRTUAL_ENV=$(VENV) UV_SYSTEM_CERTS=1 \
			$(BIN)/uv pip install --quiet --exact -c constraints.txt -e '.[dev]' || \
		{ echo "uv could not; trying pip, which is slower ..."; \
			$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'; }; } && \
		touch $@; exit; \
	done; \
	echo "error: videoldm needs Python 3.11 or 3.12, and $(or $(PYTHON),python3) is not one;" \
		"name one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 2

constraints: $(READY)  ## resolve constraints.txt anew from pyproject.toml, keeping what still fits
	@$(BIN)/uv pip compile pyproject.toml --quiet --all-extras --universal --python-version 3.11 \
		--no-annotate --custom-compile-command 'make constraints' \
		--output-file constraints.txt

clean:  ## remove .venv and caches; runs/ is kept
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
