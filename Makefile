# The commands of this project. Each does the set-up it needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build test demo demo-long clean-cache
WITH := . scripts/env.sh;

help:
	@echo 'make demo         train a small video model on two workers, kill it, resume it, look at the result'
	@echo 'make demo-long    the same with more clips and epochs'
	@echo 'make test         every test'
	@echo 'make build        the programs only'
	@echo 'make setup        fetch what the others need (they do it themselves)'
	@echo 'make clean-cache  remove everything downloaded and built'

setup:
	@./scripts/setup.sh

# The whole workspace at once, here and in `test`: cargo then builds each dependency once.
# The tests start the programs, so they are built first.
build: setup
	@$(WITH) cargo build --workspace

test: build
	@$(WITH) cargo nextest run --workspace; cargo test --quiet --doc --workspace

demo: build
	@$(WITH) "$$CARGO_TARGET_DIR/debug/xtask" demo

demo-long: build
	@$(WITH) "$$CARGO_TARGET_DIR/debug/xtask" demo --long

clean-cache:
	@$(WITH) rm -rf -- "$$MAREY_CACHE"
