# make demo   a virtual environment, the install, and the main job: three priors on simulated particles
# make test   installs what tests need as well, and runs all of them
# make tutorials         executes the tutorials in full and writes the notebooks for reading
# make docs              writes the API reference from docstrings to build/docs/api
# make models/README.md  writes the page of model cards
# make picture           draws the README's picture from the runs of make demo

PYTHON ?= python3
VENV ?= .venv
SEEDS ?= 3
DEMO := runs/demo
RUN := $(VENV)/bin/pyrocryo
RUNS := $(DEMO)/vae $(DEMO)/slowvae $(DEMO)/boltzmann

.PHONY: demo picture test lint tutorials docs clean
.DELETE_ON_ERROR:

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pyrocryo needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(VENV)/bin/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

demo: $(VENV)/installed
	rm -rf $(DEMO)
	mkdir -p $(DEMO)
	$(RUN) simulate time-resolved $(DEMO)/time.star
	$(RUN) simulate temperature $(DEMO)/temperature.star
	TQDM_DISABLE=1 OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 $(RUNS)
	@echo
	@$(RUN) compare $(RUNS)
	@echo
	@echo "All three know the conformations (R²); only slowvae and boltzmann have axes to read (MCC, angle)."
	@echo "A seed whose ELBO lies nats below the others has failed to train (about one in 25 of slowvae): --seeds."
	@echo "Reports: $(DEMO)/*/report.html"

$(DEMO)/vae $(DEMO)/slowvae: DATA := time
$(DEMO)/boltzmann: DATA := temperature
$(RUNS):
	$(RUN) fit models/$(@F).py --data $(DEMO)/$(DATA).star --seeds $(SEEDS) --out $@

models/README.md: models/*.py pyrocryo/report/cards.py $(VENV)/installed
	$(VENV)/bin/python -m pyrocryo.report.cards models

picture: $(RUNS)
	$(VENV)/bin/python docs/picture.py $(DEMO) models/axes.png

docs: $(VENV)/installed
	$(VENV)/bin/pip install --quiet -c constraints.txt -e '.[docs]'
	$(VENV)/bin/python docs/api.py build/docs/api

tutorials: $(VENV)/installed-test
	$(VENV)/bin/python tutorials/execute.py

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -n auto --maxprocesses 8 --dist worksteal

clean:
	rm -rf $(VENV) runs build *.egg-info
