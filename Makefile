# The commands of this project. `make help` lists them.

ifndef PYTHON
PYTHON := $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif
VENV := .venv
BIN := $(VENV)/bin
NVIDIA_UNIT := $(wildcard tests/unit/test_nvidia_*.py) $(patsubst %, tests/unit/test_%.py, \
	dcgm_exporter_settings lab_nvidia mig_settings packages_script reboot)
LAB_FLEETS := $(wildcard tests/lab/test_fleet*.py) $(patsubst %, tests/lab/test_%.py, \
	acme gateway input integrity keepalived keys lab lockout mounts release secrets)
LAB_GPUS := $(wildcard tests/lab/test_nvidia_*.py)
TEST_PARTS := test-fleets test-hosts test-gpus test-molecule
READY := $(VENV)/.ready
export PATH := $(abspath $(BIN)):$(PATH)
# Each of the hundreds of runs of pyinfra in the tests would compile the roles anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo demo-down check check-plans check-units test $(TEST_PARTS) test-nvidia bench bench-fleet scorecard lock update-golden

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed"; exit 1; }
	@# Debian has that in a package of its own.
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || scripts/lab-tools python3-venv
	@echo "    setting up $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV)
	@pip install -qq --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY) ## A lab host becomes an inference node that answers
	@scripts/lab-tools
	@python -m tests.demo

demo-down: $(READY) ## Take the demo's lab away
	@quench lab down --name demo

check: $(READY) ## Lint, types, contracts, unit, golden, plan, meta: no network, under a minute
	@# Two halves at the same time: the machines of CI have two cores.
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line check-plans check-units

check-plans:
	@ruff check .
	@ruff format --check .
	@mypy
	@lint-imports --no-logo --config pyproject.toml >/dev/null || lint-imports --no-logo --config pyproject.toml
	@pytest -q tests/golden tests/plan tests/meta tests/unit/test_[a-f]*.py

check-units:
	@pytest -q tests/unit/test_[!a-f]*.py

test: check ## Everything: real hosts, the real engine, molecule
	@scripts/lab-tools
	@$(MAKE) --no-print-directory --jobs=2 $(TEST_PARTS)

# Two parts at the same time: while a test of one waits for its hosts, the other has both cores. Tests that share a lab are
# in the same part; those of single hosts fill up the part of the fleets, which waits more. A line for each test, since dots of two parts would say nothing.
$(TEST_PARTS): SHELL := bash
$(TEST_PARTS): .SHELLFLAGS := -o pipefail -c

test-fleets:
	@pytest -v $(LAB_FLEETS) | sed --unbuffered 's/^/fleets   /'

# The first has the longest test, for which those of the other part that are to run alone would have to wait.
test-hosts:
	@pytest -v tests/lab/test_interrupted.py \
		$(filter-out %/test_interrupted.py $(LAB_FLEETS) $(LAB_GPUS), $(wildcard tests/lab/test_*.py)) | sed --unbuffered 's/^/hosts    /'

test-gpus:
	@pytest -v $(LAB_GPUS) | sed --unbuffered 's/^/gpus     /'

test-molecule:
	@MOLECULE_GLOB="tests/molecule/*/molecule.yml" molecule test --all 2>&1 | sed --unbuffered 's/^/molecule /'

test-nvidia: $(READY) ## The NVIDIA stack alone, on simulated GPUs: all platforms, upgrade, rollback, faults
	@scripts/lab-tools
	@MOLECULE_GLOB="tests/molecule/gpu-*/molecule.yml" molecule test --all
	@pytest -q --all-boards $(NVIDIA_UNIT) $(LAB_GPUS)

bench: $(READY) ## Commands per host and seconds of a run with nothing to change
	@scripts/lab-tools
	@python -m tests.bench

bench-fleet: $(READY) ## A fleet under load: rollout, failover, requests/s, latency, 5,000 streams; twelve minutes
	@scripts/lab-tools wrk curl
	@python -m tests.bench_fleet

scorecard: $(READY) ## What independent judges say of a host, bare and after a run
	@scripts/lab-tools
	@python -m tests.scorecard

update-golden: $(READY) ## Write the rendered trees anew, to be read in the diff
	@pytest -q tests/golden --update

lock: $(READY) ## Lock all requirements anew, with hashes
	@scripts/lock
