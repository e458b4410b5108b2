# Two commands do it all: `make up` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
INVENTORY ?= inventories/local
# uv does not read pip's variables by itself.
export SSL_CERT_FILE ?= $(or $(PIP_CERT),$(REQUESTS_CA_BUNDLE))
ifeq ($(SSL_CERT_FILE),)
unexport SSL_CERT_FILE
endif
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
# `make setup FROM=<bundle>` takes a bundle in place of the internet.
ifdef FROM
export PIP_NO_INDEX := 1
export UV_OFFLINE := 1
export PIP_FIND_LINKS := $(FROM)/control
export UV_FIND_LINKS := $(FROM)/control
endif
# Neither leaks into the hosts nor hides the project's own settings.
unexport PYTHONDONTWRITEBYTECODE PYTHONPATH
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export ANSIBLE_LOCALHOST_WARNING := False
LOCKS := files/locks
STAMP := .venv/.locked
# On this machine: asks for the password of sudo only where one is needed. Other hosts: ARGS=--ask-become-pass.
BECOME := $(shell [ "$(INVENTORY)" != inventories/local ] || [ "$$(id -u)" = 0 ] || sudo -n true 2>/dev/null || echo --ask-become-pass)
PLAYBOOK = ansible-playbook -i $(INVENTORY) $(BECOME)
QUESTIONS := status list config logs memory timeline tasks actors
# FORMAT=json prints JSON, TO=file writes it.
ANSWER = $(if $(FORMAT),-e operate_format=$(FORMAT)) $(if $(TO),-e operate_json=$(abspath $(TO)))

.PHONY: $(QUESTIONS) versions run check-config dashboard delete shutdown
.PHONY: help setup up down check preflight bundle export lint unit molecule first-scenarios test soak docs site lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | while IFS=$$'\t' read -r name text; do printf '  make %-12s %s\n' "$$name" "$$text"; done
	@echo; echo "  INVENTORY=inventories/<env> chooses the cluster; ARGS=... is passed to ansible-playbook"

setup: $(STAMP) ## make the control environment, .venv

$(STAMP): $(LOCKS)/control.lock requirements.yml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"{sys.executable} is Python {v[0]}.{v[1]}; 3.11 or newer is needed: make PYTHON=...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	@sed -n '/^uv==/,/[^\\]$$/p' $< > .venv/uv.lock
	pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.lock
	uv pip sync --quiet --python .venv/bin/python --require-hashes $<
	@ansible-galaxy collection install --offline -r requirements.yml > .venv/galaxy.log || { cat .venv/galaxy.log; exit 1; }
	@touch $@

up: setup ## make the cluster of INVENTORY and ask its model a question (default: this machine, CPU)
	$(PLAYBOOK) site.yml $(ARGS)

bundle: setup ## gather in TO=/srv/bundle what hosts without internet install from
	ansible-playbook -i $(INVENTORY) playbooks/bundle.yml -e bundle_destination=$(TO) $(ARGS)

export: setup ## write what `ray up` and KubeRay make the same cluster from, in TO=/srv/export
	ansible-playbook -i $(INVENTORY) playbooks/export.yml $(if $(TO),-e export_dir=$(abspath $(TO))) $(ARGS)

check: setup ## say what `make up` would change, and change nothing
	$(PLAYBOOK) site.yml --check --diff $(ARGS)

preflight: setup ## look from every host of INVENTORY at all others, before anything is changed
	$(PLAYBOOK) playbooks/preflight.yml $(ARGS)

down: setup ## remove the cluster of INVENTORY
	$(PLAYBOOK) teardown.yml $(ARGS)

status: ## nodes and applications with replicas, requests per second and errors; FORMAT=json, TO=file, here and below
list: ## applications in one line each
config: ## the Serve configuration that runs
logs: ## last lines of DEPLOYMENT=name, all without; FOLLOW=seconds goes on
memory: ## memory of nodes, object stores, GPUs, processes; references to objects
timeline: ## the tasks' trace for chrome://tracing, into TO=file
tasks: ## tasks by name and state
actors: ## actors by class and state
$(QUESTIONS): setup
	$(PLAYBOOK) playbooks/ask.yml -e operate_question=$@ $(if $(DEPLOYMENT),-e operate_deployment=$(DEPLOYMENT)) \
	  $(if $(FOLLOW),-e operate_follow_seconds=$(FOLLOW)) $(ANSWER) $(ARGS)

versions: setup ## versions of everything on every host, and who differs
	$(PLAYBOOK) playbooks/versions.yml $(ANSWER) $(ARGS)

run: export OPERATE_COMMAND = $(value CMD)
run: setup ## CMD='nvidia-smi' on all nodes
	$(PLAYBOOK) playbooks/command.yml $(ANSWER) $(ARGS)

check-config: setup ## whether FILE=serve.yaml, or what the inventory serves, would be taken; touches nothing that runs
	$(PLAYBOOK) playbooks/check_config.yml $(if $(FILE),-e operate_config_file=$(abspath $(FILE))) $(ANSWER) $(ARGS)

dashboard: setup ## the ssh command for the dashboard
	$(PLAYBOOK) playbooks/dashboard.yml $(ANSWER) $(ARGS)

delete: setup ## end application APP=name; asks for its name
	$(PLAYBOOK) playbooks/delete.yml -e operate_application=$(APP) $(ARGS)

shutdown: setup ## end all that serves, not the nodes; asks for the cluster's name
	$(PLAYBOOK) playbooks/shutdown.yml $(ARGS)

lint: setup ## yamllint, ansible-lint, ruff, mypy, syntax
	yamllint --strict .
	ruff check . && ruff format --check .
	mypy
	ansible-lint --offline --strict
	ansible-playbook -i inventories/local -i inventories/example --syntax-check site.yml teardown.yml

unit: setup ## tests that need no host
	pytest -q tests/unit

molecule: setup ## tests of the roles and of the cluster in containers; SCENARIOS="a b" chooses
	tests/molecule.sh $(SCENARIOS)

first-scenarios: setup
	@tests/molecule.sh gpu_host python_env

test: setup ## every test
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint unit first-scenarios
	@tests/molecule.sh rest

soak: setup ## what is too long for `make test`: hundreds of random changes, all faults and upgrades, throughput, the other system
	RAYMETAL_SOAK=1 RAYMETAL_MUTATIONS=150 tests/molecule.sh python_env model_store offline firewall gateway ray_serve ray_health pair cluster faults upgrade throughput fan_out_speed install_speed
	MOLECULE_SUITE=trixie tests/molecule.sh gpu_host

docs: setup ## renew docs/reference.md from the roles' specs
	python docs/generate.py

site: setup ## the pages of docs/ as a site, in .cache/site
	uv run --quiet --no-project --isolated --python "$$(command -v python)" --with-requirements $(LOCKS)/docs.lock zensical build --strict

lock: setup ## renew the locks from files/locks/*.in
	tests/lock.sh

clean: ## remove the control environment and caches
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .ansible
