# make            set up .venv and run the course: every notebook re-executed, every figure regenerated
# make test       set up .venv and check everything
# make lab        work through the notebooks in JupyterLab
# make figs NB=01_02 FORMAT=pdf    the figures of one notebook, also for print
# make bench QUICK=1    how fast the kernels are, next to peer libraries
# make help       all targets
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FORMAT ?= png
NB ?=
QUICK ?=
BOOK := build/book
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.DEFAULT_GOAL := course
.PHONY: course test test-notebooks test-package lint format lab figs assignments book test-book bench constraints clean help

course: $(VENV)/installed  ## run what is stale (on a new installation everything)
	@if [ -f $(VENV)/verified ]; then $(BIN)/coursekit run; \
	else $(BIN)/coursekit run --force && touch $(VENV)/verified; fi

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "The course needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@echo "[1/3] creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[2/3] installing the packages pinned in constraints.txt (once; a few minutes)"
	@$(PIP) install -c constraints.txt hatchling editables
	@$(PIP) install -c constraints.txt --no-build-isolation -e ".[course,dev,cluster]"
	@echo "[3/3] checking the installation"
	@$(BIN)/coursekit doctor
	@rm -f $(VENV)/verified && touch $@

test: lint test-notebooks test-package  ## everything: style, types, notebooks, figures, kernels, packaging

lint: $(VENV)/installed  ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

test-notebooks: $(VENV)/installed  ## re-execute every notebook and compare its outputs
	@rm -rf build/figs
	@$(BIN)/pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg -n auto --dist loadscope notebooks

test-package: $(VENV)/installed test-notebooks  ## kernels, course tools, packaging, and the figures just re-rendered
	@COURSEKIT_RENDERED=build/figs $(BIN)/pytest -n auto --dist loadscope tests

format: $(VENV)/installed  ## apply ruff's formatting, to the .md of notebooks too (then run the stale ones)
	@$(BIN)/ruff format --exclude '*.ipynb' . && $(BIN)/ruff check --fix --exclude '*.ipynb' .
	@for f in notebooks/*.md notebooks/*/*.md; do \
	  $(BIN)/jupytext --quiet --pipe "$(BIN)/ruff format --stdin-filename notebooks/cell.py -" $$f || exit 1; done

lab: $(VENV)/installed  ## open JupyterLab
	@$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

figs: $(VENV)/installed  ## regenerate the figures of NB (default: all), with FORMAT=pdf or svg also for print
	@$(BIN)/coursekit run --force $(NB) --format $(FORMAT)

assignments: $(VENV)/installed  ## the students' versions of exercises/, in build/assignments
	@rm -rf build/assignments
	@cd exercises && for d in [0-9]*/; do PATH="$(CURDIR)/$(BIN):$$PATH" nbgrader generate_assignment --force $${d%/} || exit 1; done
	@echo "The students' versions are in build/assignments, without solutions and hidden tests"

$(VENV)/book: pyproject.toml constraints.txt | $(VENV)/installed
	@echo "installing what the web edition needs (once)"
	@$(PIP) install -c constraints.txt --no-build-isolation -e ".[course,dev,cluster,book]"
	@touch $@

$(BOOK)/npm/installed: book/package.json book/package-lock.json
	@command -v npm > /dev/null || \
	  { echo "make book needs npm, which fetches MathJax: install Node.js 20 or newer (on Debian: apt install npm)"; exit 1; }
	@mkdir -p $(BOOK)/npm && cp book/package.json book/package-lock.json $(BOOK)/npm
	@npm ci --prefix $(BOOK)/npm --ignore-scripts --no-audit --no-fund --loglevel error
	@touch $@

book: $(VENV)/book $(BOOK)/npm/installed  ## the web edition, of the notebooks as they were executed
	@$(BIN)/python -m book.stage && $(BIN)/python -m book.assets
	@rm -rf $(BOOK)/html  # or pages that are no more would stay
	@$(BIN)/sphinx-build -q -W --keep-going -j auto -c book -d $(BOOK)/doctrees $(BOOK)/source $(BOOK)/html
	@cd $(BOOK)/html && ../npm/node_modules/.bin/purgecss --config $(CURDIR)/book/purgecss.config.cjs --output . --preserve-paths
	@echo "The web edition is built: open $(BOOK)/html/index.html"

test-book: book  ## every page of the web edition in a browser, Debian's chromium or the one that CHROMIUM names
	@$(BIN)/pytest -n 2 book/tests

bench: $(VENV)/installed  ## compare the kernels with peer libraries and write benchmarks/RESULTS.md; QUICK=1: a look in 3 minutes
	@cd benchmarks && OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 \
	  $(CURDIR)/$(BIN)/python -m pytest $(if $(QUICK),--quick,--results RESULTS.md)

constraints:  ## pin the newest versions that pyproject.toml admits
	@rm -rf build/pins && $(PYTHON) -m venv build/pins && build/pins/bin/python -m pip install -q hatchling editables
	@build/pins/bin/python -m pip install -q --no-build-isolation -e ".[course,dev,cluster,book]"
	@sed -n '/^#/p' constraints.txt > build/constraints.txt
	@build/pins/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' >> build/constraints.txt
	@sed -n '/ ; /p' constraints.txt >> build/constraints.txt && mv build/constraints.txt constraints.txt

clean:  ## remove what make made (.venv included), keep notebooks and figures
	@rm -rf $(VENV) build out .pytest_cache .mypy_cache .ruff_cache .hypothesis

help:  ## this list
	@awk -F':.*## *' '/^[a-z-]+:.*##/ { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
