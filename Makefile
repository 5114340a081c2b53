# `make help` lists what there is. Everything runs in $(VENV), made on first use from requirements/*.txt.

VENV   ?= .venv
RECIPE ?= seed
# The first Python that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check
INSTALL = $(PIP) -r $< || { echo 'Not installed: pip said why above. Without a network, or behind a proxy, point pip at a package index' \
	'(PIP_INDEX_URL, HTTPS_PROXY); the same command then goes on.' >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help model serve test coverage test-wheel container-test check format swaps train bench bench-training quality methods drift clients ray scale lock install-gpu clean soak attack confined decoding audit install-train install-shots install-grpc base

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14
	@echo 'HOST= PORT= MODELS= go to serve, RECIPE= MODELS= to train; every GRAFT_… setting of docs/settings.md works too.'

serve: $(VENV)/serve.stamp ## serve the models folder: HOST=127.0.0.1 PORT=8000 MODELS=models
	@exec env $(if $(HOST),GRAFT_HOST='$(HOST)') $(if $(PORT),GRAFT_PORT='$(PORT)') \
		$(if $(MODELS),GRAFT_MODELS='$(MODELS)') $(PY) -m app

SUITE := pytest -n auto --dist loadfile --no-loadscope-reorder --durations=20

test: $(VENV)/dev.stamp ## the whole test suite
	@OMP_NUM_THREADS=1 $(PY) -m $(SUITE) $(ARGS)

coverage: $(VENV)/dev.stamp ## the same, and which lines and branches no test reaches
	@rm -f .coverage .coverage.*
	@OMP_NUM_THREADS=1 $(PY) -m coverage run -m $(SUITE) $(ARGS); status=$$?; \
	$(PY) -m coverage combine --quiet; $(PY) -m coverage report || true; exit $$status

test-wheel: $(VENV)/dev.stamp ## build the wheel, and test what packaging alone can break
	@$(PY) tests/against_wheel.py

container-test: $(VENV)/dev.stamp ## build and run the image and the compose stack on an engine of its own: root, Debian, minutes
	@PYTHONPATH=.:tests $(PY) -m containers

check: $(VENV)/dev.stamp ## what must hold of the source: style, types, import direction
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(PY) -m pytest -q tests/test_architecture.py

format: $(VENV)/dev.stamp ## mend what ruff can mend
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

swaps: $(VENV)/dev.stamp ## 200 models swapped under full load: no wrong answer, no memory kept; SWAPS=200
	@SWAPS=$(or $(SWAPS),200) $(PY) -m pytest -q -s tests/test_swaps.py

soak: $(VENV)/dev.stamp ## good, bad, hostile and vanishing clients while models are swapped, for MINUTES=10; a table and a plot in .bench
	@PYTHONPATH=tests $(PY) -m benchmarks.soak --minutes $(or $(MINUTES),10)

attack: $(VENV)/dev.stamp ## a plain client beside eight that send the costliest pictures there are: SECONDS=30
	@PYTHONPATH=tests $(PY) -m benchmarks.attack --seconds $(or $(SECONDS),30)

confined: $(VENV)/dev.stamp ## the service in 512 MiB on two CPUs under the worst files that can be drawn: SECONDS=60, root
	@PYTHONPATH=tests $(PY) -m benchmarks.confined --seconds $(or $(SECONDS),60)

decoding: $(VENV)/dev.stamp ## what decoding costs at the worst, for each format and mode
	@PYTHONPATH=tests $(PY) -m benchmarks.decoding

install-train: $(VENV)/train.stamp ## what training needs, torch included, into .venv

install-grpc: requirements/grpc.txt $(VENV)/serve.stamp ## what GRAFT_GRPC_PORT needs, into .venv
	@$(INSTALL)

install-shots: $(VENV)/shots.stamp ## what grafting a few images needs, no torch, into .venv

model: $(VENV)/train.stamp ## a bundle of a folder of your own images: IMAGES=FOLDER MINUTES=10 MODELS=models
	@test -n '$(IMAGES)' || { echo 'Say which: make model IMAGES=FOLDER' >&2; exit 2; }
	@$(PY) -m training auto '$(IMAGES)' --minutes '$(or $(MINUTES),10)' --models '$(or $(MODELS),models)' $(ARGS)

train: $(VENV)/train.stamp ## run a recipe: RECIPE=seed MODELS=models
	@$(PY) -m training run '$(RECIPE)' --models '$(or $(MODELS),models)'

base: $(VENV)/train.stamp ## a published network as a bundle to graft onto: BACKBONE=efficientnet-lite0 MODELS=models
	@$(PY) -m training base '$(or $(BACKBONE),efficientnet-lite0)' --models '$(or $(MODELS),models)'

# Graft and its peers; `make bench HELP=1` says what each variable takes;
# DOC=1 writes the tables into docs/performance.md. Environments and results lie in .bench.
BENCH := ONLY SERVERS PEERS CONCURRENCY SECONDS REPETITIONS REQUESTS OUT
lower = $(shell echo '$1' | tr A-Z a-z)

bench: $(VENV)/train.stamp ## Graft beside its peers and the floor: ONLY=png,resnet SERVERS=naive,graft SECONDS=2 PEERS=all DOC=1 HELP=1
	@$(PY) -m benchmarks $(if $(HELP),--help) $(foreach name,$(BENCH),$(if $($(name)),--$(call lower,$(name)) '$($(name))')) $(if $(DOC),--doc)

bench-training: $(VENV)/train.stamp ## training throughput against a plain loop
	@PYTHONPATH=. $(PY) benchmarks/loop.py

scale: $(VENV)/dev.stamp ## what a second core brings to service and scorer: ONLY=workers or score
	@PYTHONPATH=.:tests $(PY) -m benchmarks.scale $(if $(ONLY),--only '$(ONLY)')

quality: $(VENV)/train.stamp ## the bars of quality, each measured: ONLY=served,ood,int8,frozen,one-class,neu,similar,feedback DOC=1
	@PYTHONPATH=. $(PY) benchmarks/quality.py $(if $(ONLY),--only '$(ONLY)') $(if $(DOC),--doc)

methods: $(VENV)/train.stamp ## the ways to transfer beside fine-tuning, each measured: ONLY=adapt,shots,left-out,vae,augment,variants,labelling
	@$(PY) -m benchmarks.methods $(if $(ONLY),--only '$(ONLY)')

drift: $(VENV)/train.stamp ## whether drift is noticed and nothing else is: MODEL=fashion-mnist
	@PYTHONPATH=. $(PY) benchmarks/drift.py $(if $(MODEL),--model '$(MODEL)')

clients: $(VENV)-clients/stamp ## the protocol client that tests need an environment of its own for

ray: $(VENV)-ray/stamp ## the environment with Ray that its tests need

audit: $(VENV)-audit/stamp ## known vulnerabilities of what requirements/*.txt name
	@sh requirements/audit.sh $(VENV)-audit/bin/pip-audit requirements/serve.txt requirements/gpu.txt requirements/dev.txt

lock: ## renew requirements/*.txt from pyproject.toml, to the newest versions that fit
	@$(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/pip install --quiet pip-tools
	@PATH="$(abspath $(VENV)-lock)/bin:$$PATH" sh requirements/renew.sh

install-gpu: $(PY) ## the service on onnxruntime-gpu, in place of onnxruntime
	@$(PY) -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
	@$(PIP) -r requirements/gpu.txt
	@touch $(VENV)/serve.stamp

clean: ## remove everything that make made
	@rm -rf $(VENV) $(VENV)-lock $(VENV)-clients $(VENV)-ray $(VENV)-audit .bench dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*

$(PY):
	@test -n "$(PYTHON)" || { echo 'Graft needs Python 3.11 or newer; name one with PYTHON=…' >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)

# Larger sets hold the smaller ones, at the same versions.
$(VENV)/serve.stamp: requirements/serve.txt | $(PY)
	@echo 'installing the service into $(VENV)…' >&2
	@$(INSTALL)
	@touch $@

$(VENV)/shots.stamp: requirements/shots.txt | $(PY)
	@echo 'installing what grafting needs into $(VENV)…' >&2
	@$(INSTALL)
	@touch $@ $(VENV)/serve.stamp

$(VENV)/train.stamp: requirements/train.txt | $(PY)
	@echo 'installing training into $(VENV)…' >&2
	@$(INSTALL)
	@touch $@ $(VENV)/shots.stamp $(VENV)/serve.stamp

$(VENV)/dev.stamp: requirements/dev.txt | $(PY)
	@echo 'installing everything that tests need into $(VENV)…' >&2
	@$(INSTALL)
	@touch $@ $(VENV)/train.stamp $(VENV)/shots.stamp $(VENV)/serve.stamp

$(VENV)-clients/stamp: requirements/clients.txt | $(PY)
	@echo 'installing kserve into $(VENV)-clients…' >&2
	@$(PY) -m venv $(VENV)-clients
	@$(VENV)-clients/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(VENV)-ray/stamp: requirements/ray.txt requirements/serve.txt | $(PY)
	@echo 'installing Ray into $(VENV)-ray…' >&2
	@$(PY) -m venv $(VENV)-ray
	@$(VENV)-ray/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(VENV)-audit/stamp: requirements/audit.txt | $(PY)
	@echo 'installing pip-audit into $(VENV)-audit…' >&2
	@$(PY) -m venv $(VENV)-audit
	@$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@
