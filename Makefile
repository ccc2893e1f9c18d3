# `make help` lists the targets. CI runs `make test`, `make guests`, then `make e2e`.

.DEFAULT_GOAL := help
SHELL := /bin/bash
CARGO ?= cargo
# The directory for tools that the system does not have.
TOOLS := $(CURDIR)/.tools/bin
export PATH := $(TOOLS):$(PATH)
# Records the duration of each part, for .ci/run.
TIMED := scripts/timed

.PHONY: help demo test checks deny bench bench-network build release release-before releases prepare prepare-test prepare-bench fmt clippy doc chart unit sanity power torture model soak fuzz e2e prepare-e2e guests prepare-guests guest-nodes prepare-guest-nodes

help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: prepare build ## The lifecycle of a volume on a temporary pool, step by step (root)
	@target/debug/holdfast demo

test: checks unit ## All tests that need one machine, from formatting to csi-sanity (root)

checks: prepare-test fmt deny clippy doc chart sanity fuzz ## The same without the unit and black-box tests (root)

bench: prepare-bench ## The measurements of docs/benchmarks.md; ONLY="stage fio" runs a part (root)
	$(CARGO) bench --locked --bench holdfast -- $(ONLY)

bench-network: prepare-guests release-before ## An export over NVMe/TCP against its local device, in ratios, in two QEMU guests (root)
	@tests/guests/build $${CARGO_TARGET_DIR:-target}/guests
	$(CARGO) nextest run --locked --profile guests-soak --test guests --ignore-default-filter --no-capture -E 'test(/^figures::/)'

build: ## The debug binary
	@$(TIMED) build $(CARGO) build --locked

release: ## The release binary, target/release/holdfast
	$(CARGO) build --locked --release

release-before: ## The binary of the release before, for the tests that run both; needs the history of the repository
	@$(TIMED) release-before scripts/release-before >/dev/null

prepare: ## Installs missing system packages with apt as root; otherwise lists them
	@scripts/prepare run

prepare-test: ## The same, with the packages for the tests
	@$(TIMED) prepare scripts/prepare test

prepare-e2e: ## The same, with the packages for the test cluster
	@$(TIMED) prepare scripts/prepare e2e

prepare-guests: ## The same, with the packages for the QEMU guests
	@$(TIMED) prepare scripts/prepare guests

prepare-guest-nodes: ## The same, with the packages for a test cluster of QEMU guests
	@scripts/prepare e2e
	@scripts/prepare guests

prepare-bench: ## The same, with the packages for the benchmark
	@scripts/prepare bench

fmt: ## Checks the formatting
	@$(TIMED) fmt $(CARGO) fmt --all --check

deny: ## Checks the dependencies by deny.toml: bans, licenses, sources
	@$(TIMED) deny $(CARGO) deny --locked check bans licenses sources

clippy: ## Runs the lints; warnings are errors
	@$(TIMED) clippy $(CARGO) clippy --locked --all-targets -- -D warnings
	@$(TIMED) clippy $(CARGO) clippy --manifest-path fuzz/Cargo.toml --target-dir $${CARGO_TARGET_DIR:-target} -- -D warnings

doc: ## Builds the API documentation; warnings are errors
	@RUSTDOCFLAGS="-D warnings" $(TIMED) doc $(CARGO) doc --locked --no-deps --document-private-items

chart: ## Checks the Helm chart: lint, renderings, rejected values, alerts; UPDATE=1 writes the renderings, its README and deploy/
	$(if $(UPDATE),HOLDFAST_UPDATE=1 $(CARGO) nextest run --locked --test docs -E 'test(the_chart_s_schema)')
	@$(TIMED) chart scripts/chart $(if $(UPDATE),update)

sanity: build ## csi-sanity against the real socket: mount and block, with and without reflink (root)
	@$(TIMED) sanity tests/sanity.sh $${CARGO_TARGET_DIR:-target}/debug/holdfast

releases: release-before ## The release before and this one together: side by side, upgrades and downgrades (root)
	$(CARGO) nextest run --locked --test blackbox -E 'test(/^upgrade::/) + test(/^cluster::(mixed|rolling)::/)'

N ?= 200
power: ## Power cuts: after each answer, and N more spread over all flushes (root)
	HOLDFAST_POWER_POINTS=$(N) $(CARGO) nextest run --locked --test blackbox --no-capture 'power::'

torture: ## kill -9 at N random moments with 8 callers; checks the content of the volumes (root)
	HOLDFAST_TORTURE_LIVES=$(N) $(CARGO) nextest run --locked --test blackbox --no-capture 'torture::'

STEPS ?= 1000000
model: ## STEPS random calls against the model of the specification, a million by default (root)
	HOLDFAST_MODEL_SEED=$${HOLDFAST_MODEL_SEED:-random} HOLDFAST_MODEL_STEPS=$(STEPS) $(CARGO) nextest run --locked --test model --success-output final

e2e: prepare-e2e ## Tests on a real Kubernetes of two nodes with the chart and the sidecars; KEEP=1 keeps it running, BINARY=PATH tests that driver (root)
	@$(TIMED) e2e tests/kubernetes/run $(TESTS)

# GUESTS=guests-soak runs the long ones.
GUESTS ?= guests
guests: prepare-guests release-before ## Tests on kernels with device-mapper and NVMe/TCP, in small QEMU guests; TESTS="raw_block" runs a part (root)
	@$(TIMED) guests tests/guests/build $${CARGO_TARGET_DIR:-target}/guests
	@$(TIMED) guests $(CARGO) nextest run --locked --profile $(GUESTS) --test guests $(TESTS)

# guest-nodes-soak runs the long ones too.
NODES ?= guest-nodes
guest-nodes: prepare-guest-nodes ## Tests on a real Kubernetes whose nodes are QEMU guests: volumes that follow their pods; KEEP=1 and BINARY=PATH as for e2e (root)
	@$(TIMED) guest-nodes tests/guest_nodes/run $(NODES) $(TESTS)

# The time for each fuzz target, in seconds.
T ?= 20
fuzz: ## Runs every fuzz target for T seconds, 20 by default: make fuzz T=60 (root)
	@$(TIMED) fuzz scripts/fuzz $(T)

# Last, so that its summary is at the end of the output.
unit: release-before ## Unit and black-box tests (root)
	@$(TIMED) unit $(CARGO) nextest run --locked

soak: ## Long tests, for hours: power cuts, kills, random calls, guests on two kernels, guests as nodes, fuzzing (root)
	$(MAKE) power N=2000
	$(MAKE) torture N=1000
	$(MAKE) model STEPS=1000000
	$(MAKE) guests GUESTS=guests-soak
	$(MAKE) guest-nodes NODES=guest-nodes-soak
	$(MAKE) fuzz T=1200
