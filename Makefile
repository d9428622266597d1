# make demo    set up and run the demo: a Llama trained on real text under a memory cap
# make test    set up and run all tests
# make quick   set up and run a part of the tests that takes a minute: gradients, wrap, plans
# make oldest  make quick with the oldest torch that is tested, on Python 3.12, in a .venv of its own
# make check   set up and run formatters, linters, types and import directions, and build the docs
# make docs    set up and build the docs into build/site
# make gpu-check-bundle   fetch and build what a machine with a GPU may lack (docs/gpu_check.md)
# make clean   remove builds and caches (make distclean: .venv too)

PYTHON3 ?= python3
VENV ?= .venv
# Where a plain index serves torch with CUDA (several GB), ask for the CPU build, for example
#   make demo TORCH="torch==2.13.0+cpu --extra-index-url <an index of CPU wheels>"
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
STAMP := $(VENV)/.memo-train-installed
SOURCES := pyproject.toml setup.py cuda_build.py $(shell find csrc -type f 2>/dev/null)
CXX_FILES := $(shell find csrc tests benchmarks \
  -name '*.cc' -o -name '*.h' -o -name '*.cu' 2>/dev/null)
PYTHON_DIRS := memo_train planner tests examples benchmarks docs setup.py cuda_build.py

.PHONY: demo test quick oldest check docs clean distclean setup format gpu-check-bundle

setup: $(STAMP)

# Build requirements come first and build isolation is off: torch must be visible to the build,
# and an isolated build environment would fetch a second one.
$(STAMP): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON3) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet setuptools wheel pybind11
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --no-build-isolation -e ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

TEST_PROCESSES ?= 2

# One thread per process: the models are small, and several tests start two processes.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

QUICK_TESTS := tests/test_wrap.py tests/test_verify.py tests/layout tests/planner/programme \
  tests/planner/test_cli.py tests/runtime/test_gradients.py tests/runtime/test_loss_calls.py

quick: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m "not slow" \
	  $(QUICK_TESTS)

PYTHON312 ?= python3.12

# What a GPU machine of 2026 has. This torch is its CUDA build, which runs without a GPU.
oldest:
	$(MAKE) quick VENV=.venv-oldest PYTHON3="$(PYTHON312)" \
	  TORCH="torch==2.11.0 transformers==5.17.0 numpy==2.5.2"

check: $(STAMP)
	$(BIN)/ruff format --check $(PYTHON_DIRS)
	$(BIN)/ruff check $(PYTHON_DIRS)
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/lint-imports
	$(MAKE) docs

# One thread: a small step is recorded for two of the pictures.
docs: $(STAMP)
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(STAMP)
	$(BIN)/ruff format $(PYTHON_DIRS)
	$(BIN)/ruff check --fix $(PYTHON_DIRS)
	$(BIN)/clang-format -i $(CXX_FILES)

gpu-check-bundle:
	benchmarks/gpu_check/bundle.sh

clean:
	rm -rf build dist *.egg-info memo_train/_*.so planner/memo_planner/_*.so .pytest_cache .mypy_cache .ruff_cache \
	  .import_linter_cache .hypothesis
	rm -f $(STAMP)
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-oldest
