# Plain `make` lists the targets. Each command is shown as it runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := out

# Without an NVIDIA GPU, pip's default torch for Linux would bring gigabytes of CUDA that nothing uses.
ifeq ($(shell nvidia-smi -L 2>/dev/null | grep -c GPU),0)
CONSTRAINTS := constraints-cpu.txt
CPU_TORCH := $(BIN)/pip install --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu \
	-c $(CONSTRAINTS) torch
endif
INSTALL := $(BIN)/pip install $(addprefix -c ,$(CONSTRAINTS))

.PHONY: help demo test check clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

demo: $(VENV)/.installed  ## install, then reconstruct the bundled scan at R = 8
	$(BIN)/mrgen recon examples/data/brain.h5 --R 8 -o $(OUT)/
	@echo
	@echo "Done. Look at:"
	@echo "  $(OUT)/report.html   the images with sliders, samples and scores; opens in any browser"
	@echo "  $(OUT)/figure.png    reference, zero-filled, L1-wavelet, posterior mean, std and error"
	@echo "  $(OUT)/brain.h5      the arrays (docs/formats.md)"
	@echo "  $(OUT)/report.json   metrics and how they were made"
	@echo "  $(OUT)/dicom, nifti  the same for viewers (docs/dicom.md)"

test: $(VENV)/.installed-test  ## install the test extras, then run the test suite, a file of tests on each core
	$(BIN)/pytest -n auto --dist loadfile

check: $(VENV)/.installed-test  ## lint, check the format and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove outputs and caches (the environment stays: rm -r .venv)
	rm -rf $(OUT) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Editable, so that a change of the source needs no new install: only pyproject.toml and the constraints can ask for one.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(CPU_TORCH)
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(INSTALL) -e '.[test]'
	touch $@
