# make demo   all the set-up, then the whole road on this machine
# make test   all the set-up, then every test
# make check  lint, types, fast tests: under a minute once set up
# make bench-data | bench-train | bench-guard | bench-layout | bench-radio
#
# PYTHON=python3.12       another interpreter
# TORCH_INDEX=URL         where pip finds the CPU build of torch, on machines where pip would take a GPU build:
#                         the wheel index for "CPU" that PyTorch's install page names
# SIZE=nano               a smaller demo

PYTHON ?= python3
SIZE ?= tiny
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check fast format system pages clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,10s/^# \{0,1\}//p' Makefile

# Installs once: again only when pyproject.toml changed. The seconds it took are told by the demo that follows.
$(VENV)/.demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Ninthsky needs Python 3.11 or newer; set PYTHON=python3.12, say") if sys.version_info < (3, 11) else None'
	@date +%s > .install-began
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@if [ -n "$(TORCH_INDEX)" ]; then echo "installing torch from TORCH_INDEX"; \
	  $(BIN)/pip install --quiet --index-url "$(TORCH_INDEX)" 'torch>=2.11,<2.14'; fi
	@echo "installing Ninthsky and what it needs (once; minutes) ..."
	@$(BIN)/pip install --quiet -e '.[all]'
	@echo $$(( $$(date +%s) - $$(cat .install-began) )) > $(VENV)/.seconds; rm -f .install-began
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "installing what the tests need ..."
	@$(BIN)/pip install --quiet -e '.[dev]'
	@touch $@

# The raw pages come as a Debian package, fetched by the run and unpacked without installing. It needs apt's package list.
pages:
	@if command -v apt-get >/dev/null && ! apt-cache show debian-handbook >/dev/null 2>&1; then \
	  if [ "$$(id -u)" = 0 ]; then echo "apt-get update (for the raw pages) ..."; apt-get update -qq || true; \
	  else echo "apt has no package list: run 'sudo apt-get update', or name your own HTML with [data] sources"; fi; fi

# Chromium for the browser tests, iproute2 for the test that drops a host's packets.
system:
	@missing=""; command -v chromium >/dev/null || missing="chromium"; command -v ip >/dev/null || missing="$$missing iproute2"; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then echo "apt-get install $$missing ..."; \
	    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing fonts-noto-cjk >/dev/null) \
	    || echo "could not install: $$missing. Tests that need them will fail and say so."; \
	  else echo "missing: $$missing. Install them (apt-get install $$missing): tests that need them will fail and say so."; fi; fi

demo: $(VENV)/.demo pages
	@N9_INSTALL_SECONDS=$$(cat $(VENV)/.seconds 2>/dev/null || echo 0) $(BIN)/n9 demo --size $(SIZE)
	@rm -f $(VENV)/.seconds

test: $(VENV)/.dev pages system
	$(BIN)/pytest -n 2 --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/pytest -q -m "not slow and not browser"

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-%: $(VENV)/.dev
	$(BIN)/python -m benchmarks.$*

clean:
	rm -rf runs .cache .pytest_cache .mypy_cache .ruff_cache
