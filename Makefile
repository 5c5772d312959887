# Every target does whatever set-up it still lacks, so any of them is a valid first command on a fresh clone.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SET_UP := $(VENV)/installed
# To compile what nobody may import would take a third of the time.
PIP := -m pip install --quiet --no-compile --disable-pip-version-check --require-virtualenv
MODULES := generated/__init__.py
# What is newer than they are; by find, since make can't have files of every name. Where that fails, generate says why.
CHANGED := $(shell find -L spec -newer $(MODULES) 2>/dev/null || echo spec)
# Compiled anew when these change; whose spec/ is compiled; and what `make check` makes.
COMPILER := requirements.txt
HOMES := .
CHECKS := verify types test-workqueue
CHAOS := workqueue chaos
# Two makes at once (four terminals on a fresh clone) must not set up the same thing: flock where there is one.
ONE_AT_A_TIME := $(if $(shell command -v flock),flock .lock)
# Flags for the script that a target runs, such as: make producer ARGS='--simulate 100 --seconds 0.5 --wait'
ARGS ?=

.DEFAULT_GOAL := help

ifneq ($(wildcard workqueue.py),)
$(error workqueue.py would be imported here in the place of the package; give it another name)
endif

# What develops the library itself, in its own repository.
-include tests/development.mk

.PHONY: help venv install generate verify broker broker-stop cluster cluster-stop worker1 worker2 worker3 producer demo \
        test-workqueue chaos types check clean ANEW

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / {printf "  make %-26s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- set-up ---------------------------------------------------------------------------------------------------------

venv: $(PY) ## a virtual environment in .venv
install: $(SET_UP) ## the pinned packages of requirements.txt, in it
generate: $(SET_UP) ## build generated/ from spec/ anew
	@set -e; for home in $(HOMES); do $(ONE_AT_A_TIME) $(PY) -m workqueue generate $$home; done

verify: $(SET_UP) ## fail when generated/ is not what spec/ makes
	@set -e; for home in $(HOMES); do $(PY) -m workqueue generate --check $$home; done

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 2; }
	@$(ONE_AT_A_TIME) sh -c 'test -x $(PY) || $(PYTHON) -m venv $(VENV)' || \
	    { rm -rf $(VENV); echo "no virtual environment; on Debian: apt-get install python3-venv" >&2; exit 2; }

# A wheel that was replaced may have the version of the one before: it is installed whatever pip thinks.
WHEELS := $(wildcard vendor/*.whl)
$(SET_UP): requirements.txt $(wildcard constraints.txt) $(WHEELS) | $(PY)
	@echo "installing the packages of requirements.txt ..." >&2
	@$(ONE_AT_A_TIME) $(PY) $(PIP) -r requirements.txt
	@$(if $(WHEELS),$(ONE_AT_A_TIME) $(PY) $(PIP) --no-deps --force-reinstall $(WHEELS))
	@touch $@

# A changed contract is compiled before anything runs on it.
$(MODULES): $(COMPILER) $(if $(CHANGED),ANEW) | $(SET_UP)
	@$(ONE_AT_A_TIME) $(PY) -m workqueue generate

# --- the queue ------------------------------------------------------------------------------------------------------

broker: $(SET_UP) ## find a RabbitMQ (AMQP_URI), or start a private one in .broker, and print its URI
	@$(PY) -m workqueue broker start

broker-stop: $(SET_UP) ## stop the private RabbitMQ; what is queued stays
	@$(PY) -m workqueue broker stop

cluster: $(SET_UP) ## three private RabbitMQ nodes as one cluster in .cluster; prints the AMQP_URI for all three
	@$(PY) -m workqueue cluster start

cluster-stop: $(SET_UP) ## stop them; what is queued stays
	@$(PY) -m workqueue cluster stop

worker1 worker2 worker3: $(MODULES) ## a worker of this name, until Ctrl-C
	@uri=$$($(PY) -m workqueue broker start) && AMQP_URI=$$uri exec $(PY) main-worker.py $@ $(ARGS)

producer: $(MODULES) ## send the project's own files to be checksummed, and wait (or ARGS='...')
	@$(if $(ARGS),,grep -q '^class Checksum' generated/producer/messages/json/__init__.py || \
	    { echo "spec/ has no kind Checksum; say what to send: make producer ARGS='--jsonl FILE --wait'" >&2; exit 2; })
	@uri=$$($(PY) -m workqueue broker start) && AMQP_URI=$$uri exec $(PY) main-producer.py $(or $(ARGS),spec generated --wait)

demo: $(MODULES) ## all of it at once: a private broker, three workers, every file of Python's library
	@exec $(PY) -m workqueue demo

# --- checks ---------------------------------------------------------------------------------------------------------

test-workqueue: $(MODULES) ## the promises of the pattern, on a private broker with real processes
	@$(PY) -m pytest test_workqueue.py $(ARGS)

chaos: $(MODULES) ## tasks under every fault (SEED= TASKS= SECONDS= LEDGER= CONCURRENCY= OLD=; yours: PAYLOADS= HANDLER= HURRY=1)
	@exec $(PY) -m $(CHAOS) $(if $(SEED),--seed $(SEED)) $(if $(TASKS),--tasks $(TASKS)) \
	    $(if $(SECONDS),--seconds $(SECONDS)) $(if $(LEDGER),--ledger $(LEDGER)) \
	    $(if $(CONCURRENCY),--concurrency $(CONCURRENCY)) $(if $(PAYLOADS),--payloads $(PAYLOADS)) \
	    $(if $(HANDLER),--handler $(HANDLER)) $(if $(HURRY),--hurry) $(if $(OLD),--old $(OLD)) $(ARGS)

types: $(MODULES) ## mypy, which names a kind that no handler does
	@$(PY) -m mypy

check: $(CHECKS) ## everything that must hold

clean: ## remove all that was made here; what is queued in .broker too
	@if [ -x $(PY) ] && [ -d .broker ]; then $(PY) -m workqueue broker stop; fi
	@if [ -x $(PY) ] && [ -d .cluster ]; then $(PY) -m workqueue cluster stop; fi
	rm -rf $(VENV) .bench .broker .cluster .workqueue .demo .lock
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
