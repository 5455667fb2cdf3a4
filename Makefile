.PHONY: help demo test soak check web serve page bench vendors fmt deny typos dist packages
.DEFAULT_GOAL := help

SWIFTSHADER := /usr/lib/chromium/vk_swiftshader_icd.json

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

demo: ## QLoRA on the built-in model: answers before and after, loss curve, memory; installs what it needs
	-@scripts/setup vulkan
	cargo run --release -- demo

# lavapipe without worker threads: a dispatch of a tiny kernel then costs about 1 us instead of 14 to 48.
test: export LP_NUM_THREADS = 0
test: ## format, lints, all tests, GPUs' kernels and other drivers and compilers, the page in Chromium
	-@scripts/setup vulkan chromium wasm node debootstrap mpi
	scripts/typos
	cargo fmt --all --check
	cargo clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --lib
	scripts/with-mpi cargo test
	LORAINE_FORMS=gpu scripts/with-mpi cargo test --test it parity::
	@if [ -e $(SWIFTSHADER) ]; then \
		echo "LORAINE_CHECKED=1 VK_DRIVER_FILES=$(SWIFTSHADER) cargo test --lib ops::"; \
		LORAINE_CHECKED=1 VK_DRIVER_FILES=$(SWIFTSHADER) scripts/with-mpi cargo test --lib ops::; \
	else \
		echo "skipped: the kernels on SwiftShader (no $(SWIFTSHADER))"; \
	fi
	scripts/newer-mesa-test
	scripts/vendors --check
	scripts/wasm-cargo clippy -- -D warnings
	scripts/page-test

soak: export LP_NUM_THREADS = 0
soak: export LORAINE_SOAK ?= 50
soak: ## faults of the machine in large numbers: system calls, kills, two writers, lost GPUs, damaged files; some hours
	cargo test --test it -- faults:: lossy:: mutated_inputs:: hub::a_hostile_hub

check: ## compile, lint and run the tests that need no GPU, on any system
	cargo clippy --all-targets -- -D warnings
	cargo test --test it -- architecture:: project::

web: ## build the page and its npm package; installs what they need
	-@scripts/setup wasm node
	scripts/build-wasm
	cd web && npm ci --no-audit --no-fund && npm run build

serve: ## serve the page on localhost
	@[ -e web/dist/index.html ] || $(MAKE) web
	node web/serve.mjs

page: ## build the page and test it in Chromium alone
	-@scripts/setup chromium wasm node
	scripts/page-test

bench: ## ceilings, operations, whole steps, and the figures of BENCHMARKS.md beside their peers
	-@scripts/setup vulkan
	scripts/bench

vendors: ## registers, spills and inner loops that the compilers of AMD's, NVIDIA's and Intel's GPUs report, without a GPU
	-@scripts/setup vulkan
	scripts/vendors

fmt: ## format the code
	cargo fmt --all
	@[ ! -e web/node_modules ] || npm --prefix web run --silent format

deny: ## licenses, sources and advisories of dependencies; needs cargo-deny
	cargo deny check

typos: ## spelling
	scripts/typos

# The program for one system, in an archive with its documents. TARGET is a Rust target, by default this machine's.
TARGET ?= $(shell rustc -vV | sed -n 's/^host: //p')
dist: ## the program as an archive in target/dist
	scripts/dist $(TARGET)

packages: web ## crate, npm packages and the page as archives in target/dist; publishes nothing
	scripts/packages
