# make run    notebooks, records and an HTML report under runs/, on this machine's profile
# make test   everything CI runs
# make bundle-check   the offline bundle, installed and used without a network (needs python3.12; 6 GB the first time)
# make lab    JupyterLab on notebooks/      make setup  the environment alone      make clean  remove what these made
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
READY := .venv/.ready
# The oldest PyTorch and Triton that g4lab supports; what the lock does not name comes from .venv.
OLD := .venv-old/bin
OLD_READY := .venv-old/.ready
KERNEL_TESTS := rms router qkv_norm qkv_norm_rope_kv row_norms extend_attention fused_moe sglang_extend \
  compile_facts peers
NOTEBOOKS := $(patsubst notebooks/%.ipynb,nbval/%,$(wildcard notebooks/*.ipynb))
# Tests run two at a time; on a GPU one after the other, because a server takes most of its memory.
LANES := $(if $(shell nvidia-smi -L 2>/dev/null),1,2)

# A named step that prints how long it took and fails as its command fails.
define step
@echo "=== $(1)"; start=$$SECONDS; $(2); echo "=== $(1): $$((SECONDS - start)) s"
endef

# A step that may run beside others: its target's name stands before every line.
define lane
$(call step,$(1),($(2)) 2>&1 | sed -u 's|^|$@: |')
endef

.PHONY: help setup run test bundle-check lab clean lint unit old server nbval wheel $(NOTEBOOKS)
help:
	@sed -n '/^# /!q; s/^# //p' Makefile

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@for p in $(PYTHON) python3 python3.12 python3.13 python3.11; do \
	  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$p; break; fi; done; \
	if [ -z "$${found:-}" ]; then echo "g4lab needs Python >= 3.11; none found (set PYTHON=/path/to/python)" >&2; exit 1; fi; \
	echo "=== .venv with $$($$found --version)"; [ -x $(BIN)/python ] || $$found -m venv .venv
	$(call step,install (about 5 GB; minutes),$(BIN)/python -m pip install --progress-bar off --disable-pip-version-check --no-deps -r requirements.lock | sed -unE '/^(Collecting|Installing|Successfully)/p' | cut -c1-120)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

$(OLD_READY): $(READY) requirements-torch2.11.lock
	@rm -rf .venv-old; $(BIN)/python -m venv .venv-old
	$(call step,install the old PyTorch (about 2 GB; a minute),$(OLD)/python -m pip install -q --progress-bar off --disable-pip-version-check --no-deps -r requirements-torch2.11.lock)
	@site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(BIN)/python -c "$$site" > "$$($(OLD)/python -c "$$site")/venv.pth"
	@touch $(OLD_READY)

run: setup
	$(call step,run,$(BIN)/g4lab run)

# Threads that wait for their team sleep: spinning, they take the cores from the tests beside them.
test unit old server nbval $(NOTEBOOKS): export OMP_WAIT_POLICY := passive
test: setup $(OLD_READY)
	@start=$$SECONDS; $(MAKE) --no-print-directory lint; \
	$(MAKE) --no-print-directory -j$(LANES) server nbval/30_serving unit old nbval wheel; \
	echo "=== make test: $$((SECONDS - start)) s"

lint: setup
	$(call step,lint,$(BIN)/ruff check .; $(BIN)/ruff format --check .)

unit: setup
	$(call lane,unit and property tests,$(BIN)/python -m pytest -m "not server")

old: $(OLD_READY)
	$(call lane,kernel tests on the oldest PyTorch and Triton,$(OLD)/python -m pytest --locked requirements-torch2.11.lock $(KERNEL_TESTS:%=tests/test_%.py))

server: setup
	$(call lane,tests on the real SGLang server,$(BIN)/python -m pytest -m server -v)

nbval: $(NOTEBOOKS)

$(NOTEBOOKS): nbval/%: setup
	$(call lane,notebook $* as a test,$(BIN)/python -m pytest --nbval --nbval-sanitize-with notebooks/sanitize.cfg --timeout 1200 -v notebooks/$*.ipynb)

wheel: setup
	$(call lane,wheel,$(BIN)/python .ci/check_wheel.py)

bundle-check: setup
	$(call step,bundle,$(BIN)/python .ci/check_bundle.py)

lab: setup
	$(BIN)/jupyter lab --notebook-dir notebooks

clean:
	rm -rf .venv .venv-old build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
