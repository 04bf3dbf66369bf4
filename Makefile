# All of this needs only Python 3.11 or newer, make and a package index.

PYTHON ?= python3
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv serve test test-redis faults check format bench test-lowest test-wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1: /p' Makefile

venv: .venv/made ## create .venv, with the package and all that its tests and checks need

serve: .venv/made ## run the service on 127.0.0.1:8000
	.venv/bin/asyncguard serve $(ARGS)

test: .venv/made ## run all tests; ARGS="..." goes to pytest
	.venv/bin/python -m pytest $(ARGS)

test-redis: .venv/made ## run the tests of the Redis backend on the redis-server that is installed here
	ASYNCGUARD_TEST_REDIS_SERVER=redis-server .venv/bin/python -m pytest tests/*/test_redis*.py tests/model/test_lua*.py $(ARGS)

faults: .venv/made ## kill, stop and cancel processes that share guards, and judge what they noted; a minute or more
	.venv/bin/python tests/faults/conductor.py $(ARGS)

check: .venv/made ## check format, lint and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/pyright

format: .venv/made ## format the code, and mend what lint can mend
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: .venv/made ## measure, side by side with what one would use instead
	.venv/bin/python -m benchmarks $(ARGS)

test-lowest: .venv-lowest/made ## run the tests with the oldest dependencies that are allowed (the model has none)
	.venv-lowest/bin/python -m pytest -m "not slow" --ignore tests/model $(ARGS)

test-wheel: .venv/made ## run the tests against the built wheel (the model aside)
	rm -rf build/wheel
	.venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-wheel/bin/python -m pip install --quiet "$$(echo build/wheel/*.whl)[all]" --group test
	.venv-wheel/bin/python -m pytest -m "not slow" --ignore tests/model $(ARGS)

clean: ## remove what the other targets made
	rm -rf .venv .venv-lowest .venv-wheel build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/made: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade "pip>=25.1"  # older ones know no dependency groups
	.venv/bin/python -m pip install --quiet --editable ".[all]" --group test --group check --group bench
	@touch $@

.venv-lowest/made: pyproject.toml requirements-lowest.txt
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-lowest/bin/python -m pip install --quiet --editable ".[all]" --group test --constraint requirements-lowest.txt
	@touch $@
