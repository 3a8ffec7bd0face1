# Two commands: `make run` shows everything, `make test` checks everything. Both set up .venv first.
PYTHON ?= python3
VENV   := .venv
JOBS   ?= 2
STAMP  := $(VENV)/.installed
PY     := $(VENV)/bin/python

# Use the environment's own Jupyter kernel even where a user-wide kernel of the same name is installed.
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help run site lab app notebooks test setup clean

help:
	@echo "make run        set up $(VENV) if needed, execute all notebooks, build their site: build/index.html"
	@echo "make lab        set up, then open JupyterLab on notebooks/   (options: make lab ARGS=--no-browser)"
	@echo "make app        set up, then serve the explorers and a training as a web page, on this machine alone   (ARGS=--no-browser)"
	@echo "make site       set up, then build the site without executing, from stored outputs where there are no newer ones"
	@echo "make test       set up, then run ruff, pytest and the notebooks against their stored outputs"
	@echo "            on more than two cores: make test JOBS=8"
	@echo "make notebooks  execute the notebooks in place, so that their outputs can be committed   (one: ARGS=notebooks/00_quickstart.ipynb)"
	@echo "make setup      only set up; another Python: make setup PYTHON=python3.12"
	@echo "make clean      remove build/ and the caches ($(VENV) stays: rm -rf $(VENV) removes it)"

setup: $(STAMP)

# Repeated whenever pyproject.toml is newer. The last line also builds matplotlib's font cache, once, outside the notebooks.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' here. Name a Python >= 3.11: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mtanytime needs Python >= 3.11, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "'$(PYTHON)' lacks venv or pip. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install -e '.[notebooks,test]'
	$(PY) -c 'import mtanytime, matplotlib.font_manager; print("mtanytime", mtanytime.__version__, "is ready in $(VENV)")'
	@touch $@

run: $(STAMP)
	$(PY) notebooks/execute.py $(ARGS)
	$(PY) docs/build.py

site: $(STAMP)
	$(PY) docs/build.py $(ARGS)

notebooks: $(STAMP)
	$(PY) notebooks/execute.py --in-place $(ARGS)

lab: $(STAMP)
	$(PY) -m jupyterlab $(ARGS) notebooks

app: $(STAMP)
	$(PY) -m mtanytime app data/results/transfer_runs data/results/anytime_cifar10_full.csv $(ARGS)

# Two tests with one thread each are quicker than one with two threads. Notebooks continue each other's runs, so they run
# one after the other. All parts run even when one fails, so that one call shows everything there is to fix.
test: $(STAMP)
	@failed=""; \
	$(PY) -m ruff check . || failed="$$failed ruff-check"; \
	$(PY) -m ruff format --check . || failed="$$failed ruff-format"; \
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist worksteal $(ARGS) || failed="$$failed pytest"; \
	if ls notebooks/*.ipynb >/dev/null 2>&1; then \
		rm -rf build/runs; $(PY) -m pytest --nbval --nbval-current-env notebooks || failed="$$failed nbval"; \
	else echo "nbval: there are no notebooks yet"; fi; \
	if [ -n "$$failed" ]; then echo "FAILED:$$failed"; exit 1; fi; echo "all checks passed"

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find mtanytime notebooks docs tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
