# Targets for the development of the library itself, beside those of a project that uses it.

HOMES := . tests
CHECKS := verify lint types test
CHAOS := tests.chaos
COMPILER := $(wildcard workqueue/compiler/*.py workqueue/compiler/*/pyproject.toml)
# The peers that `make bench` measures need packages of their own.
BENCH := .bench
# Tests wait more than they work: two for each processor keep those busy.
JOBS ?= $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) * 2)))

.PHONY: test-unit test test-soak partition bench lint

test-unit: $(MODULES) ## the tests that need no broker, no database, no worker and no generator, in under a minute
	@$(PY) -m pytest -n $(JOBS) --dist worksteal -m "not broker and not slow" $(ARGS)

test: $(MODULES) ## all tests but the soaks, some at a time (JOBS=)
	@$(PY) -m pytest -n $(JOBS) --dist worksteal -m "not soak" $(ARGS)

test-soak: $(MODULES) ## the soaks: clusters that lose nodes, and longer runs of chaos, a minute each
	@$(PY) -m pytest -n $(JOBS) --dist worksteal -m soak $(ARGS)

lint: $(SET_UP)
	@$(VENV)/bin/ruff check --quiet . && $(VENV)/bin/ruff format --check --quiet . && $(VENV)/bin/lint-imports

partition: $(MODULES) ## tasks while hosts fall silent, in network namespaces; as root (SEED= SECONDS= TASKS=)
	@exec $(PY) -m tests.partition $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS)) \
	    $(if $(TASKS),--tasks $(TASKS)) $(ARGS)

bench: $(BENCH)/installed ## measure this beside Celery, Dramatiq, Taskiq, FastStream and raw AMQP (ARGS='--quick')
	@exec $(BENCH)/bin/python -m bench $(ARGS)

$(BENCH)/installed: requirements.txt bench/requirements.txt | $(PY)
	@echo "installing the packages of bench/requirements.txt in $(BENCH) ..." >&2
	@$(ONE_AT_A_TIME) sh -c 'test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)'
	@$(ONE_AT_A_TIME) $(BENCH)/bin/python $(PIP) -r bench/requirements.txt
	@touch $@
