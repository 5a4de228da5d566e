# The commands of this project; `make` without a target lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run play page web test test-all check docs docs-serve docs-links reference format lint prose types stubs stubs-check bench chaos fuzz native-fuzz native-model native-sanitize conformance licences sbom audit lock test-ray data native native-check gpu webgpu gpu-report test-gpu bench-gpu up down smoke rolling-update certificate e2e e2e-alerts dist clean

PY := .venv/bin/python
# One worker per core, at most 8. Each file runs on one worker, so that its shared fixtures are created once.
# `.venv/bin/python -m pytest FILE` runs a file without workers.
PYTEST := $(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile
SPHINX := .venv/bin/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going --conf-dir docs
PROTOS := $(wildcard proto/*/*.proto proto/*/*/*.proto)
REQUIREMENTS := pyproject.toml client/pyproject.toml constraints.txt
NEWER_DEV_STAMP := test $(foreach file,$(REQUIREMENTS),.venv/dev.stamp -nt $(file) -a) -e .venv/dev.stamp
EXPORTED := $(wildcard export/*.py) $(wildcard export/weights/*.safetensors)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: .venv/run.stamp model.onnx ## export, serve, send 10 real digits, serve until Ctrl-C
	@$(PY) scripts/run.py

play: .venv/play.stamp model.onnx ## draw digits in a browser, see every layer of the network
	@$(PY) scripts/run_playground.py

page: ## put the page into OUT=build/page, for disk or any host
	@rm -rf "$(or $(OUT),build/page)" && mkdir -p "$(or $(OUT),build/page)" && cp playground/static/* "$(or $(OUT),build/page)"
	@echo "page: file://$(abspath $(or $(OUT),build/page))/index.html"

web: ## build playground/static from playground/web; needs Node 20
	@command -v npm >/dev/null || { echo "web: npm was not found: install Node from https://nodejs.org" >&2; exit 1; }
	@cd playground/web && npm ci --silent --no-fund --no-audit && npm run --silent build

test: .venv/dev.stamp model.onnx ## run the quick tests, in 3 minutes on 2 cores
	@$(PYTEST) -m "not slow"

test-all: .venv/dev.stamp model.onnx ## run every test, the slow ones too
	@$(PYTEST)

gpu: .venv-gpu/stamp ## make .venv-gpu: ONNX Runtime for CUDA and all else (3 GB)
	@echo "gpu: .venv-gpu/bin/python -m service --provider cuda"

webgpu: .venv/webgpu.stamp ## add the WebGPU plugin to .venv: any vendor's GPU (16 MB)
	@echo "webgpu: .venv/bin/python -m service --provider webgpu"

gpu-report: ## report GPU tests and CPU against GPU; WHEELS=DIR
	@scripts/gpu-report

test-gpu: .venv-gpu/stamp ## run the tests on a GPU, NVIDIA's and WebGPU's
	@.venv-gpu/bin/python -m pytest -m gpu

bench-gpu: .venv-gpu/stamp model.onnx ## CPU against GPU: from which batch on the GPU is faster
	@.venv-gpu/bin/python -m bench.providers

check: lint types stubs-check docs native-check test-all ## everything that CI runs

lint: .venv/dev.stamp prose ## check format, style and prose
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

docs: .venv/docs.stamp ## build the documentation site; a broken link fails
	@$(SPHINX) --builder html . build/docs
	@echo "docs: file://$(abspath build/docs)/index.html"

docs-serve: docs ## serve the site on http://localhost:8001
	@$(PY) -m http.server --bind 127.0.0.1 --directory build/docs 8001

docs-links: .venv/docs.stamp ## check the links to other hosts; needs the network
	@$(SPHINX) --builder linkcheck . build/docs-links

reference: .venv/dev.stamp ## write the pages of options, commands, metrics and alerts
	@$(PY) scripts/reference.py

prose: .venv/dev.stamp ## check pages for plain English and sentence length
	@$(PY) scripts/prose.py

types: .venv/dev.stamp ## check types
	@$(PY) -m mypy

format: .venv/dev.stamp ## format the code
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

stubs: .venv/dev.stamp ## generate the stubs of server and client from proto/
	@$(PY) scripts/stubs.py

stubs-check: .venv/dev.stamp
	@$(PY) scripts/stubs.py --check

native: .venv/run.stamp ## build the fast transport into .venv; optional, needs cargo
	@command -v cargo >/dev/null || { echo "native: cargo is needed and was not found: install Rust from https://rustup.rs"; exit 1; }
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall ./native

native-check: .venv/dev.stamp
	@if command -v cargo >/dev/null; then \
		set -e; cd native; export PYO3_PYTHON="$$PWD/../$(PY)"; cargo fmt --check; \
		cargo clippy --quiet --locked --all-targets -- --deny warnings; cargo test --quiet --locked; \
		cargo fmt --check --manifest-path fuzz/Cargo.toml; cargo fmt --check --manifest-path model-check/Cargo.toml; \
		cargo test --quiet --locked --manifest-path model-check/Cargo.toml; \
		if cargo deny --version >/dev/null 2>&1; then cargo deny --log-level error --locked check bans licenses sources; \
		else echo "native-check: the crates' licences and sources are not checked: cargo install cargo-deny"; fi; \
	else echo "native-check: skipped, cargo was not found: install Rust from https://rustup.rs"; fi

up: ## start the stack in containers; settings are in .env
	docker compose up --build --detach --wait

down: ## stop the stack; models and measurements stay in volumes
	docker compose down --remove-orphans

smoke: .venv/run.stamp ## send digits to the stack, check the counts of Prometheus
	@$(PY) scripts/smoke.py

rolling-update: ## roll out new settings, model or image without losing calls
	scripts/rolling-update

certificate: ## make tls/tls.crt and tls.key for localhost
	scripts/certificate tls

e2e: .venv/dev.stamp ## test the compose files on a Docker engine
	@$(PY) -m pytest tests/e2e/stack.py --capture=no --verbosity=1

e2e-alerts: .venv/dev.stamp ## cause every alert on a Docker engine; an hour
	@E2E_PROJECT=digitserve-alerts E2E_FIRST_PORT=51150 $(PY) -m pytest tests/e2e/alerts.py tests/e2e/alerts_in_fast_time.py --capture=no --verbosity=1

dist: .venv/run.stamp ## build the wheels of server and client into dist/
	@$(PY) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist . ./client

data: .venv/run.stamp ## fetch MNIST into data/mnist, for training and evaluation
	@$(PY) -m export data

chaos: .venv/dev.stamp ## the faults of docs/faults.md, half an hour; needs h2load
	@CHAOS=1 $(PY) -m pytest tests/test_overload.py tests/test_slow_clients.py tests/test_restarts.py tests/test_resource_exhaustion.py \
		tests/test_fuzz.py tests/test_soak.py --verbosity=1
	@$(PY) scripts/draw_soak.py

fuzz: .venv/dev.stamp ## fuzz every reader with atheris, SECONDS=60 each
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt atheris
	@for target in messages model image idx options tokens; do \
		$(PY) -m fuzz $$target -max_total_time=$(or $(SECONDS),60) || exit 1; \
	done

native-fuzz: .venv/dev.stamp ## fuzz the native transport, SECONDS=60 each; cargo-fuzz
	@cargo +nightly fuzz --version >/dev/null 2>&1 || { \
		echo "native-fuzz needs a nightly Rust and cargo-fuzz: rustup toolchain install nightly; cargo install cargo-fuzz" >&2; \
		exit 1; }
	@$(PY) -m fuzz.seeds requests native/fuzz/corpus/requests
	@cd native/fuzz && cargo +nightly run --quiet --locked --example seeds
	@cd native && for target in requests predict infer; do \
		cargo +nightly fuzz run $$target -- -max_total_time=$(or $(SECONDS),60) -max_len=20000 || exit 1; \
	done

conformance: .venv/dev.stamp ## h2spec, gRPC's tools and clients in 4 languages
	@$(PY) -m pytest tests/conformance --verbosity=1

native-model: ## search the schedules of native's threads, with loom
	@command -v cargo >/dev/null || { echo "native-model: cargo was not found: install Rust from https://rustup.rs" >&2; exit 1; }
	@cd native/model-check && cargo test --locked

native-sanitize: .venv/dev.stamp model.onnx ## run native's tests under Thread- and AddressSanitizer
	@scripts/sanitize

licences: .venv/dev.stamp ## write docs/licences.md, the serving packages' licences
	@scripts/audit licences

sbom: .venv/dev.stamp ## write build/sbom.json, the serving packages in CycloneDX
	@scripts/audit sbom

audit: .venv/dev.stamp ## query PyPI for vulnerabilities of the serving packages
	@scripts/audit vulnerabilities

test-ray: .venv/ray.stamp ## run the tests on a cluster of 4 Ray nodes; some minutes
	@$(PY) -m pytest tests/test_ray.py tests/test_ray_serve.py --verbosity=1

bench: .venv/dev.stamp model.onnx ## compare this server with others, 10 minutes; needs h2load
	@$(PY) -m bench

lock: ## write constraints.txt from the newest versions
	@scripts/lock

clean: ## remove generated files: .venv, model.onnx, caches
	rm -rf .venv .venv-gpu .venv*.new .venv*.old model.onnx build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis native/target
	rm -rf native/model-check/target native/fuzz/target native/fuzz/corpus native/fuzz/artifacts
	rm -rf playground/web/node_modules examples/go/pb examples/java/target examples/node/node_modules examples/rust/target
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

model.onnx: .venv/run.stamp $(EXPORTED)
	@$(PY) -m export onnx --out $@

# A larger set of packages includes the smaller one, so the targets can be built in any order.
.venv/run.stamp: $(REQUIREMENTS) scripts/setup
	@$(NEWER_DEV_STAMP) || scripts/setup client $@
	@touch $@

.venv/webgpu.stamp: $(REQUIREMENTS) scripts/setup
	@$(NEWER_DEV_STAMP) || scripts/setup client,webgpu $@
	@touch $@

.venv/play.stamp: $(REQUIREMENTS) scripts/setup
	@$(NEWER_DEV_STAMP) || scripts/setup play $@
	@touch $@

# Ray is in no other set. Its dependencies are pinned separately, and only the tests of test-ray need it.
.venv/ray.stamp: .venv/dev.stamp constraints-ray.txt
	@scripts/setup dev,ray $@

# The site is built for `make check` and for readers; only its test needs Sphinx.
.venv/docs.stamp: .venv/dev.stamp
	@scripts/setup dev,docs $@

.venv-gpu/stamp: $(REQUIREMENTS) constraints-gpu.txt scripts/setup scripts/requirements.py
	@VENV=.venv-gpu scripts/setup dev,gpu $@

.venv/dev.stamp: $(REQUIREMENTS) scripts/setup
	@scripts/setup dev $@
