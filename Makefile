# make demo   the whole life cycle on this machine: start a model, ask it, by itself and through the gateway, see who used
#             what, stop it
# make test   install what the tests need and run them
# make check  lint, format and types;  make bench  the benchmarks;  make venv  what the scripts need, in .venv
#
# PYTHON is the interpreter that .venv is made of: make demo PYTHON=python3.12

PYTHON ?= python3
venv_python := .venv/bin/python
# byte_sink.py is the far end of request_body.py, and bench/starts/ is what platform_start.py is made of: no benches.
benches := $(filter-out bench/byte_sink.py,$(sort $(wildcard bench/*.py)))
install := $(venv_python) -m pip install --quiet --disable-pip-version-check --editable

.PHONY: demo test check bench bench-gateway venv
.DELETE_ON_ERROR:

demo: .venv/installed-demo
	@$(venv_python) scripts/demo.py

test: .venv/installed-dev
	$(venv_python) -m pytest --numprocesses=auto --dist=loadgroup --cov --cov-report=term

check: .venv/installed-dev
	$(venv_python) -m ruff check .
	$(venv_python) -m ruff format --check .
	$(venv_python) -m mypy scripts tests
	set -e; for folder in platform/*/; do MYPYPATH="scripts:$$folder" $(venv_python) -m mypy "$$folder"*.py; done

bench: .venv/installed-dev
	@set -e; for file in $(benches); do $(venv_python) "$$file"; done

# Half an hour, most of it the peers; needs wrk, nginx and PostgreSQL, and two processors that nobody else uses.
bench-gateway: .venv/installed-dev
	$(venv_python) bench/gateway/peers.py
	$(venv_python) bench/gateway/streams.py
	$(venv_python) bench/gateway/log_growth.py

venv: .venv/installed-docker,kubernetes,local,gateway,postgresql

# One stamp for each set of extras: a second run installs nothing.
.venv/installed-%: pyproject.toml .venv/made
	@echo "installing what '$*' needs into .venv: about a minute, once" >&2
	@$(install) '.[$*]'
	@touch '$@'

.venv/made:
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "$(PYTHON) is missing or older than 3.10. Name a newer one: make PYTHON=python3.12 …" >&2; exit 1; }
	@'$(PYTHON)' -m venv --clear .venv || { rm -rf .venv; \
	    echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch '$@'
