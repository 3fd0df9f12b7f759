# Two commands matter: `make demo` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
SANDBOX := inventories/sandbox
PLAY := .venv/bin/ansible-playbook -i $(SANDBOX)
PLAY_VM := .venv/bin/ansible-playbook -i inventories/vm

.PHONY: help demo demo-down vm vm-down test lint unit molecule locks build clean

help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: .venv/.demo ## Three nodes in containers, site.yml over SSH, a training job, the summary
	$(PLAY) molecule/sandbox/create.yml
	$(PLAY) site.yml

demo-down: .venv/.demo ## Remove all that `make demo` made: nodes, networks, volumes, image, an engine that it started
	$(PLAY) molecule/sandbox/destroy.yml -e '{"sandbox_remove_all": true}'

vm: .venv/.demo ## Two nodes as virtual machines, bare: ansible-playbook -i inventories/vm site.yml
	$(PLAY_VM) molecule/vm/create.yml
	@echo 'Next: .venv/bin/ansible-playbook -i inventories/vm site.yml, or ssh -F .sandbox/vm/ssh_config node1'

vm-down: .venv/.demo ## Remove all that `make vm` made
	$(PLAY_VM) molecule/vm/destroy.yml -e '{"vm_remove_all": true}'

test: .venv/.test ## Every check that CI runs
	.venv/bin/python tests/run.py

lint: .venv/.test ## ansible-lint, ruff and the changelog
	.venv/bin/python tests/run.py lint

unit: .venv/.test ## Unit tests
	.venv/bin/python tests/run.py unit

molecule: .venv/.test ## The scenarios, or one: make molecule SCENARIO=docker
	.venv/bin/python tests/run.py molecule-$(or $(SCENARIO),default)

locks: .venv/.test ## Make the locks again (UPGRADE=--upgrade for newer versions)
	UV=.venv/bin/uv tools/lock $(UPGRADE)

build: .venv/.demo ## The collection's tarball, in build/
	.venv/bin/ansible-galaxy collection build --force --output-path build

clean: ## Remove virtual environments, builds and reports
	rm -rf .venv build reports .cache

.venv/.%: requirements/%.txt tools/venv
	tools/venv $@ $<
