# ipclab. Two commands are enough: `make lab` and `make test`. All that they install goes into .venv/ and .venvs/.

PORT    ?= 8888
BROWSER ?=
PYTHON  ?=
PYTEST  ?=
# uv makes the environments when it is there; `make UV= ...` does without it.
UV      ?= $(shell command -v uv 2>/dev/null)

BIN := .venv/bin
# Where a container sets it, each of the tests' thousand processes would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE
# What some tests need from Debian: a browser, and fonts for it to write with; SPIN, and the compiler that it calls.
CHROMIUM := chromium fonts-liberation
FONTS    := fontconfig fonts-wqy-microhei fonts-noto-color-emoji
SPIN     := spin gcc libc6-dev
# The test files that say that they run on every Python of the machine, and all that they need (versions: constraints.txt).
CORE_TESTS := $(shell grep -l '^pytestmark = .*every_python' tests/test_*.py)
PYENV      := $(or $(PYENV_ROOT),$(HOME)/.pyenv)
CORE_NEEDS := cffi dill multiprocess numba numpy posix_ipc pyzmq sysv_ipc hypothesis pytest pytest-timeout pytest-xdist
# Side by side, where the kernel allows it: tests/lane.py. Whoever becomes idle takes tests over from the others.
# What fails is run once more, and shown: tests/again.py.
IN_LANES   := -n auto --dist worksteal -p tests.again

.PHONY: help lab test report pictures clean distclean lint pythons test-pythons browser fonts spin
.DEFAULT_GOAL := help

help:  ## list these commands
	@echo 'ipclab: labs on inter-process communication'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|' 2>/dev/null || \
		sed -n 's/^\([a-z-]*\):.*## /  make \1   /p' Makefile
	@echo 'The first use makes .venv/ (Python >= 3.11, chosen with PYTHON=/path/to/python3).'

lab: .venv/.compiled  ## open JupyterLab on the start page (PORT=8888, BROWSER=none prints the address only)
	@exec $(BIN)/labkit lab --port '$(PORT)' --browser '$(BROWSER)'

# What a shell runs in the background does not hear of Ctrl-C, so that it is told.
test: .venv/.made  ## everything that CI runs (PYTEST='-k pipe' passes options on to the last step)
	@failed=; trap 'kill 0' INT; \
	$(MAKE) --no-print-directory test-pythons & others=$$!; \
	$(MAKE) --silent .venv/.test browser fonts spin || { wait; exit 1; }; \
	$(MAKE) --no-print-directory --keep-going .venv/.compiled lint || failed="$$failed lint"; \
	wait $$others || failed="$$failed test-pythons"; \
	echo "== all tests$${failed:+ (already FAILED, see above:$$failed)}"; \
	$(BIN)/python -m pytest $(IN_LANES) $(PYTEST) && test -z "$$failed"

report: .venv/.compiled  ## run every notebook without a window and write reports/ipclab.html
	@exec $(BIN)/labkit report

pictures: .venv/.test browser  ## take the pictures of the README again, docs/*.png
	@$(BIN)/python docs/pictures.py

clean:  ## remove caches and built reports
	rm -rf reports dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . \( -name .git -o -name '.venv*' \) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -print0 \
		| xargs -0 rm -rf

distclean: clean  ## the same, and the environments
	rm -rf .venv .venvs

lint: .venv/.test  ## formatting, lint and types only
	@echo '== ruff, mypy'
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy labkit

# ---------------------------------------------------------------------------------------------------------------------
# Environments. A stamp says what is installed; it is remade when the list of dependencies has changed.

# $(call install,ENVIRONMENT,WHAT): install into an environment, with the versions that passed.
ifeq ($(UV),)
install = $(1)/bin/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt $(2)
create  = "$$python" -m venv --clear $(1)
else
install = $(UV) pip install --quiet --compile-bytecode --python $(1)/bin/python --constraint constraints.txt $(2)
create  = $(UV) venv --quiet --clear --python "$$python" $(1)
endif

# Sets $python to PYTHON, or to the first Python that is new enough and can make environments; says what is missing.
define find_python
	python=; found=; \
	for name in $(if $(PYTHON),'$(PYTHON)',python3 python3.13 python3.12 python3.11 python3.14); do \
		"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		found=$$name; \
		test -z '$(UV)' && ! "$$name" -c 'import venv, ensurepip' 2>/dev/null && continue; \
		python=$$name; break; \
	done; \
	if test -z "$$python$(PYTHON)" && test -n '$(UV)'; then python='>=3.11'; fi; \
	if test -z "$$found$$python"; then \
		echo 'make: no Python 3.11 or newer$(if $(PYTHON), at $(PYTHON)).'; \
		echo '      Debian 12, Ubuntu 24.04 or newer: sudo apt-get install python3 python3-venv'; \
		echo '      elsewhere: install uv or Python, then make PYTHON=/path/to/python3 $(MAKECMDGOALS)'; exit 1; \
	elif test -z "$$python"; then \
		echo "make: $$found has no module venv. Debian, Ubuntu: sudo apt-get install python3-venv"; \
		echo '      or name another Python: make PYTHON=/path/to/python3 $(MAKECMDGOALS)'; exit 1; \
	fi >&2
endef

.venv/.made:
	@if ! $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		$(find_python); echo "== making .venv with $$python"; $(call create,.venv); \
	fi
	@touch $@

.venv/.lab: .venv/.made pyproject.toml constraints.txt
	@echo '== installing the labs into .venv (a minute or two, the first time only)'
	@$(call install,.venv,--editable .)
	@touch $@

# Numba keeps its machine code beside the sources; without this the first cell that starts a process would wait for it.
.venv/.compiled: .venv/.lab $(wildcard labkit/*_entry.py labkit/*/*.py)
	@echo '== compiling the queues (half a minute, once)'
	@$(BIN)/python -c 'import labkit.preload'
	@touch $@

.venv/.test: .venv/.made pyproject.toml constraints.txt
	@echo '== installing the labs and what their tests need into .venv (a minute or two, the first time only)'
	@$(call install,.venv,--editable '.[test]')
	@touch .venv/.lab $@

# ---------------------------------------------------------------------------------------------------------------------
# Tools of some tests, from Debian: installed by root where they are missing; anybody else is told how.

# $(call debian,PACKAGES)
debian = test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo '== installing $(1)' && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1) >/dev/null

browser: .venv/.test
	@if $(BIN)/python -c 'import sys; from labkit.doctor import find_browser; sys.exit(find_browser() is None)'; then \
		exit 0; \
	elif test -z "$$LABKIT_BROWSER"; then \
		$(call debian,$(CHROMIUM)) && exit 0; \
	fi; \
	echo '!! NO BROWSER: the tests that drive one are SKIPPED. To run them install a Chromium'; \
	echo '!! (Debian: sudo apt-get install $(CHROMIUM)) or set LABKIT_BROWSER to its path.'

fonts:
	@test -n "$$(fc-list :charset=4f60 2>/dev/null)" -a -n "$$(fc-list :charset=1f389 2>/dev/null)" || { \
		$(call debian,$(FONTS)); } || { \
		echo '!! NO FONTS for Chinese and emoji: the PDF tests that look for them are SKIPPED. To run them install some'; \
		echo '!! (Debian: sudo apt-get install $(FONTS))'; \
	}

spin:
	@command -v spin >/dev/null && command -v gcc >/dev/null || { $(call debian,$(SPIN)); } || { \
		echo '!! NO SPIN: the models of the queues are NOT CHECKED. To check them install it'; \
		echo '!! (Debian: sudo apt-get install $(SPIN))'; \
	}

# ---------------------------------------------------------------------------------------------------------------------
# Queues, channels and processes on every other Python of this machine, each in an environment of its own.

# The head of a loop over them, which sets $version and $environment.
define for_every_python
	own=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	for version in 3.11 3.12 3.13; do \
		environment=.venvs/$$version; \
		test $$version = $$own || test -z '$(CORE_TESTS)' && continue; \
		for python in python$$version "$(PYENV)"/versions/$$version.*/bin/python none; do \
			"$$python" -c 'import venv, ensurepip' 2>/dev/null && break; \
		done; \
		test "$$python" = none && continue
endef

# Side by side, since installing waits for the network most of the time.
pythons: .venv/.made
	@status=0; made=; $(for_every_python); \
		( \
			if ! test $$environment/.made -nt pyproject.toml || ! test $$environment/.made -nt constraints.txt; then \
				echo "== making $$environment"; \
				$(call create,$$environment) && \
				$(call install,$$environment,$(CORE_NEEDS)) && \
				$(call install,$$environment,--no-deps --editable .) && \
				touch $$environment/.made || exit 1; \
			fi; \
			$$environment/bin/python -c 'import labkit.preload' \
		) & made="$$made $$!"; \
	done; \
	for one in $$made; do wait $$one || status=1; done; exit $$status

test-pythons: pythons
	@status=0; $(for_every_python); \
		echo "== channels, queues and processes on Python $$version"; \
		$$environment/bin/python -m pytest -q $(IN_LANES) $(CORE_TESTS) || status=1; \
	done; exit $$status
