# Millrace. `make help` lists the targets.
.DEFAULT_GOAL := help
.ONESHELL:
.NOTPARALLEL:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

# uv makes the environment from uv.lock. Where it is missing, this version goes into a private folder.
UV_VERSION := 0.13.9
UV_HOME := .millrace/uv
UV := $(or $(shell command -v uv),$(UV_HOME)/bin/uv)
RUN := $(UV) run --frozen

.PHONY: help run up stop clean test check lint unit integration long mechanisms faults format reference docs environment

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

run: environment  ## start everything, replay real data, show the result
	$(RUN) millrace demo

up: environment  ## start the servers only
	$(RUN) millrace up

stop: environment  ## stop everything; the data stays
	$(RUN) millrace down

clean:  ## stop everything and remove its state (settings.env and the caches stay)
	@if [ -x .venv/bin/millrace ]; then .venv/bin/millrace down; fi
	home="$${MILLRACE_HOME:-.millrace}"
	rm -rf "$$home"/{airflow,catalog.duckdb,checkpoints,data,data_docs,great_expectations,lake,logs,run,secrets}

test: lint unit integration  ## lint, unit and integration tests

check: environment  ## lint, and within a minute the unit tests of what main (or SINCE=ref) does not have, nearest first
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) lint-imports --no-cache >/dev/null || $(RUN) lint-imports --no-cache
	$(RUN) mypy & typing=$$!
	tests="$$($(RUN) python -m tests.support.touched $(SINCE))"
	if [ -n "$$tests" ]; then
		$(RUN) pytest $$tests -m "not long" --numprocesses=2 --seconds=40 || { wait $$typing || true; exit 1; }
	fi
	wait $$typing

lint: environment  ## ruff, mypy, and who may import whom
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy
	$(RUN) lint-imports --no-cache

format: environment  ## let ruff rewrite the code
	$(RUN) ruff check --fix
	$(RUN) ruff format

unit: environment  ## tests without servers and without a JVM
	$(RUN) pytest tests/unit -m "not long and not spark" --numprocesses=2 --durations=20

integration: environment  ## tests against real servers on ports of their own, and those that need a Spark session
	$(RUN) pytest tests/integration tests/unit -m "not long and (integration or spark)" --numprocesses=3 --durations=20

long: environment  ## the tests that make test leaves out for their length, and many more examples of the properties
	$(RUN) pytest tests/unit -m hypothesis --hypothesis-profile=search --numprocesses=2
	$(RUN) pytest tests -m long

mechanisms: environment  ## take each promise's mechanism away and watch its test fail
	$(RUN) python -m tests.mechanisms

faults: environment  ## harm a platform of its own in every known way with several seeds (three hours); docs/reliability.md has the result
	$(RUN) millrace fault all --report

reference: environment  ## write the pages under docs/ that follow from the code anew
	$(RUN) python -m docs.generate

docs: reference  ## build the documentation into site/; a broken link fails
	$(RUN) --group docs python -m zensical build --clean --strict

# Where Python may not keep what it has compiled, each process would compile pandas and Spark's Python anew.
COMPILED := $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)

environment: $(UV)  ## the Python environment, from the lock file
	@$(UV) sync --frozen $(COMPILED)

$(UV_HOME)/bin/uv:
	@for python in python3.12 python3.11 python3 python; do
		if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
			echo "fetching uv $(UV_VERSION) into $(UV_HOME)" >&2
			rm -rf $(UV_HOME)
			$$python -m venv $(UV_HOME) || { echo "millrace: $$python has no venv; Debian: apt-get install python3-venv" >&2; exit 1; }
			$(UV_HOME)/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
			exit 0
		fi
	done
	echo "millrace: Python 3.11 or 3.12 is needed, but the PATH has none (Debian: apt-get install python3 python3-venv)" >&2
	exit 1
