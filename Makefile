# make demo   a virtual environment, the install, and the main job: three priors on simulated particles
# make test   installs what tests need as well, and runs all of them

PYTHON ?= python3
VENV ?= .venv
SEEDS ?= 3
DEMO := runs/demo
RUN := $(VENV)/bin/pyrocryo

.PHONY: demo test lint clean
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
	$(RUN) fit models/vae.py --data $(DEMO)/time.star --seeds $(SEEDS) --out $(DEMO)/vae
	$(RUN) fit models/slowvae.py --data $(DEMO)/time.star --seeds $(SEEDS) --out $(DEMO)/slowvae
	$(RUN) fit models/boltzmann.py --data $(DEMO)/temperature.star --seeds $(SEEDS) --out $(DEMO)/boltzmann
	@echo
	@$(RUN) compare $(DEMO)/vae $(DEMO)/slowvae $(DEMO)/boltzmann
	@echo
	@echo "All three know the conformations (R²); only slowvae and boltzmann have axes to read (MCC, angle)."
	@echo "Reports: $(DEMO)/*/report.html"

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

test: lint
	$(VENV)/bin/pytest

clean:
	rm -rf $(VENV) runs build *.egg-info
