# The whole developer interface. Everything is installed into .venv, which any of these makes.

PYTHON ?= python3
INSTALLED = .venv/.installed

.PHONY: sentiment test test-all test-gpu check bench format clean

sentiment: $(INSTALLED)  ## fine-tune the packaged MiniLM on movie reviews; prints scores and the run directory
	.venv/bin/tl-nlp train sentiment

test: check  ## style, types, layers, and all tests but the long ones
	.venv/bin/pytest

test-all: test  ## everything CI runs
	.venv/bin/pytest -m slow

test-gpu: $(INSTALLED)  ## what only a GPU can show, where there is one
	.venv/bin/pytest -m gpu

check: $(INSTALLED)  ## style, types and layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: export CUDA_VISIBLE_DEVICES =
bench: $(INSTALLED)  ## speed and memory against peers on the CPU, for docs/performance.md; some hours
	.venv/bin/python benchmarks/against_trainer.py
	.venv/bin/python benchmarks/choices.py
	.venv/bin/python benchmarks/exporting.py
	.venv/bin/python benchmarks/generating.py
	.venv/bin/python benchmarks/head.py
	.venv/bin/python benchmarks/memory.py
	.venv/bin/python benchmarks/scaling.py

format: $(INSTALLED)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --editable '.[demo,export,gpu,openvino,samples,dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
