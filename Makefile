# The two commands of the README are `make run` and `make test`; both set up first.
SHELL := /bin/bash
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST_ARGS ?=
DEVNET_ARGS ?=
IMAGE_ARGS ?=

EXTENSION_SOURCES := setup.py pyproject.toml $(wildcard kmscore/*.pyx kmscore/*.pxd kmscore/_ffi/*.pxd)

.PHONY: help setup run test lint bench bench-quick contracts image devnet-image run-image test-image lock-sources clean
help:  ## say what each target does
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 18

setup: $(BIN)/.extensions tools/node_modules/.installed  ## install everything: Debian packages, .venv, anvil and solc, the extensions

run: setup  ## run a whole cluster on this machine: chain, three nodes, an app; Ctrl-C stops it
	$(BIN)/nova-kms devnet $(DEVNET_ARGS)

test: setup  ## run the tests (TEST_ARGS go to pytest)
	$(BIN)/pytest -n 2 --dist loadgroup -m "not image" $(TEST_ARGS)

lint: setup  ## ruff, mypy strict on appliance, import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

image: setup  ## build the enclave image from its lock into dist/image (minutes the first time: the kernel is compiled)
	$(BIN)/nova-kms image fetch
	$(BIN)/nova-kms image build --out dist/image $(IMAGE_ARGS)

devnet-image: setup  ## build the image of a node for devnets into dist/devnet-image
	$(BIN)/nova-kms image fetch
	$(BIN)/nova-kms image build --config enclave_image/devnet.toml --out dist/devnet-image $(IMAGE_ARGS)

run-image: devnet-image  ## run a cluster with one node from the image, in the emulator; Ctrl-C stops it
	$(BIN)/nova-kms devnet --nodes 2 --eif dist/devnet-image/nova-kms.eif $(DEVNET_ARGS)

test-image: image devnet-image  ## run the tests that build and boot images (TEST_ARGS go to pytest)
	$(BIN)/pytest -m "image and not kernel" $(TEST_ARGS)

lock-sources:  ## lock the project's own sources anew for the image; no network, seconds
	$(BIN)/nova-kms image lock --sources-only

bench: setup $(BIN)/.bench-wheels  ## measure everything, write bench/report/index.html and report.md (long; leave the machine alone)
	$(call benchmarks,)
	$(BIN)/python -m bench.report

bench-quick: setup $(BIN)/.bench-wheels  ## the same in minutes; fails when a ratio within this run is beyond its limit
	$(call benchmarks,--quick)
	$(BIN)/python -m bench.report --fail-on-ratios

# A part ends with 1 when it missed a limit, which is the report's to tell; without its results it has failed itself.
define benchmarks
	$(BIN)/python -m bench.report --begin
	$(BIN)/python -m bench.micro $(1) || test -e build/bench/micro.json
	$(BIN)/python -m bench.load $(1) || test -e build/bench/load.json
	$(BIN)/python -m bench.scale $(1) || test -e build/bench/scale.json
endef

contracts: setup  ## compile the Solidity sources into the committed artifacts
	$(BIN)/python -m appliance.chain.compile

clean:  ## remove what setup and the tests made
	rm -rf $(VENV) build tools/node_modules *.egg-info kmscore/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis

# --- set-up steps, each done once and again when its input changes ---

build/.debian: tools/debian-packages.sh
	@mkdir -p build
	tools/debian-packages.sh $(PYTHON)
	@touch $@

$(BIN)/.wheels: build/.debian requirements/dev.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r requirements/dev.lock
	@touch $@

$(BIN)/.bench-wheels: $(BIN)/.wheels requirements/bench.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r requirements/bench.lock
	@touch $@

$(BIN)/.extensions: $(BIN)/.wheels $(EXTENSION_SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace -j 2
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
	@touch $@

tools/node_modules/.installed: build/.debian tools/package.json tools/package-lock.json
	cd tools && npm ci --no-audit --no-fund --loglevel=error
	@touch $@
