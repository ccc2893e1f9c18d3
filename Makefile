# `make help` lists the targets. CI runs `make test`, `make guests`, then `make e2e`.

.DEFAULT_GOAL := help
SHELL := /bin/bash
CARGO ?= cargo
# Tools that are not on the system are put here, beside the build.
TOOLS := $(CURDIR)/.tools/bin
export PATH := $(TOOLS):$(PATH)
# Notes how long a part took, for .ci/run.
TIMED := scripts/timed

.PHONY: help demo test bench build release prepare prepare-test prepare-bench fmt clippy doc chart unit sanity power torture model soak fuzz e2e prepare-e2e guests prepare-guests

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: prepare build ## A volume's whole life on a temporary pool, step by step (root)
	@target/debug/holdfast demo

test: prepare-test fmt clippy doc chart sanity fuzz unit ## Everything that needs one machine, from formatting to csi-sanity (root)

bench: prepare-bench ## The numbers of docs/benchmarks.md; ONLY="stage fio" measures a part (root)
	$(CARGO) bench --locked --bench holdfast -- $(ONLY)

build: ## The debug binary
	@$(TIMED) build $(CARGO) build --locked

release: ## The release binary, target/release/holdfast
	$(CARGO) build --locked --release

prepare: ## Names the missing system packages, and installs them where apt and root are at hand
	@scripts/prepare run

prepare-test: ## The same, with what the tests need besides
	@$(TIMED) prepare scripts/prepare test

prepare-e2e: ## The same, with what a cluster needs besides
	@$(TIMED) prepare scripts/prepare e2e

prepare-guests: ## The same, with what guests need besides
	@$(TIMED) prepare scripts/prepare guests

prepare-bench: ## The same, with what the benchmark needs besides
	@scripts/prepare bench

fmt: ## Formatting
	@$(TIMED) fmt $(CARGO) fmt --all --check

clippy: ## Lints, warnings are errors
	@$(TIMED) clippy $(CARGO) clippy --locked --all-targets -- -D warnings
	@$(TIMED) clippy $(CARGO) clippy --manifest-path fuzz/Cargo.toml --target-dir $${CARGO_TARGET_DIR:-target} -- -D warnings

doc: ## API documentation, warnings are errors
	@RUSTDOCFLAGS="-D warnings" $(TIMED) doc $(CARGO) doc --locked --no-deps --document-private-items

chart: ## The Helm chart: lint, what it renders, what it refuses; UPDATE=1 writes what it renders, its README and deploy/
	$(if $(UPDATE),HOLDFAST_UPDATE=1 $(CARGO) nextest run --locked --test docs -E 'test(the_chart_s_schema)')
	@$(TIMED) chart scripts/chart $(if $(UPDATE),update)

sanity: build ## csi-sanity against the real socket: mount and block, with and without reflink (root)
	@$(TIMED) sanity tests/sanity.sh target/debug/holdfast

N ?= 200
power: ## Power cuts: N more of them, evenly over all flushes, besides those right after each answer (root)
	HOLDFAST_POWER_POINTS=$(N) $(CARGO) nextest run --locked --test blackbox --no-capture 'power::'

torture: ## kill -9 at N random moments under 8 callers, content checked (root)
	HOLDFAST_TORTURE_LIVES=$(N) $(CARGO) nextest run --locked --test blackbox --no-capture 'torture::'

STEPS ?= 1000000
model: ## Random calls against the model of the specification: STEPS of them, a million by default (root)
	HOLDFAST_MODEL_SEED=$${HOLDFAST_MODEL_SEED:-random} HOLDFAST_MODEL_STEPS=$(STEPS) $(CARGO) nextest run --locked --lib --success-output final 'model::'

e2e: prepare-e2e ## A real Kubernetes of two nodes with the chart and the sidecars, and its tests; KEEP=1 leaves it up (root)
	@$(TIMED) e2e tests/kubernetes/run $(TESTS)

guests: prepare-guests ## The driver on a kernel with device-mapper, in small QEMU guests; TESTS="raw_block" runs a part (root)
	@$(TIMED) guests tests/guests/build $${CARGO_TARGET_DIR:-target}/guests
	@$(TIMED) guests $(CARGO) nextest run --locked --profile guests --test guests $(TESTS)

# Seconds each target is fuzzed.
T ?= 20
fuzz: ## Every fuzz target for T seconds each, 20 by default: make fuzz T=60 (root)
	@$(TIMED) fuzz scripts/fuzz $(T)

# Last, so that its summary is what one sees at the end.
unit: ## Unit and black-box tests (root)
	@$(TIMED) unit $(CARGO) nextest run --locked

soak: ## What finds more the longer it runs, for hours: power cuts, kills, random calls, fuzzing (root)
	$(MAKE) power N=2000
	$(MAKE) torture N=1000
	$(MAKE) model STEPS=1000000
	$(MAKE) fuzz T=1200
