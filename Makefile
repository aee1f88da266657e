# Everything runs from .venv, which these targets make and keep up to date.
PYTHON ?= python3
BIN := .venv/bin
# pip's CPU build of PyTorch, where there is no GPU to use and the index can be reached.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
DEMO := runs/demo

.PHONY: help demo test test-slow clean

help:
	@echo "make demo       train an implicit and an explicit model, compare them, write $(DEMO)/report/index.html"
	@echo "make test       format, lint, types, floors and tests, as .ci/run does"
	@echo "make test-slow  the tests that take minutes"
	@echo "make clean      remove .venv and $(DEMO)"
	@echo "PYTHON=python3.12 chooses the interpreter, TORCH_INDEX=URL the package index of PyTorch"

demo: .venv/for-demo
	rm -rf $(DEMO)
	$(BIN)/equilm train recipes/demo.toml --out $(DEMO)/implicit
	$(BIN)/equilm train recipes/demo-explicit.toml --out $(DEMO)/explicit
	$(BIN)/equilm evaluate $(DEMO)/implicit $(DEMO)/explicit --windows 1 8
	$(BIN)/equilm report $(DEMO) --title "Following a permutation for 2,000 tokens" --command "make demo"

# One thread a worker: two that use two each are slower than none.
test test-slow: export OMP_NUM_THREADS = 1
test: .venv/for-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -n auto -m "not slow"

test-slow: .venv/for-test
	$(BIN)/pytest -n auto -m slow

clean:
	rm -rf .venv $(DEMO)

.venv/for-demo: pyproject.toml | .venv/bin/python
	$(call install,.)
	@touch $@

.venv/for-test: pyproject.toml | .venv/bin/python
	$(call install,.[test])
	@touch $@ .venv/for-demo

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "equilm needs Python 3.11 or newer, and $(PYTHON) is not: try make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

reachable = import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/torch/", timeout=5)
define install
@index=; \
	if [ -n "$(TORCH_INDEX)" ] && $(BIN)/python -c '$(reachable)' "$(TORCH_INDEX)" 2>/dev/null; \
	then index="--extra-index-url $(TORCH_INDEX)"; fi; \
	echo "installing equilm and PyTorch into .venv: minutes the first time, nothing later"; \
	$(BIN)/python -m pip install --quiet $$index --editable '$(1)'
endef
