# Every command works in a fresh clone: it makes .venv and installs what it uses, in the versions of constraints.txt.
.DEFAULT_GOAL := help
.PHONY: help demo serve serve-redis test test-fast test-programs check fuzz bench lock clean
.DELETE_ON_ERROR:

# The first interpreter that torch and Ray have wheels for; `make PYTHON=/path/to/python3` overrides.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt
# What is installed already: the service itself, and what else the demo, the benchmarks and the tests use.
SERVICE := .venv/.installed
STANDINS := .venv/.installed-standins
DEMO := .venv/.installed-demo
BENCH := .venv/.installed-bench
TESTS := .venv/.installed-test
LOCK := .venv/.installed-lock

# A replica computes with one thread (two cores must serve three stages); no usage reports.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

help:
	@echo "make demo    convert the recordings of samples/ through the graph into demo-out/"
	@echo "make serve   serve configs/local.yaml on 127.0.0.1:8000 until Ctrl-C"
	@echo "make serve-redis  the same with a Redis and an S3 server beside it, which go with it"
	@echo "make test    run all tests"
	@echo "make test-fast  run most of those that need neither Ray nor a browser nor other programs, in minutes"
	@echo "make check   format, lint and type checks"
	@echo "make fuzz    look for new inputs that break something, SECONDS=60 for each kind"
	@echo "make bench   run the benchmarks that fit this machine into benchmarks/results/"
	@echo "make lock    renew constraints.txt, and check that each supported Python gets wheels"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.14 is needed and none was found; set PYTHON=/path/to/python3"; exit 1; }
	@# Debian and Ubuntu ship Python without ensurepip: fetch it where that is allowed.
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
		|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -q && apt-get install -qy python3-venv; } \
		|| { echo "$(PYTHON) cannot make virtual environments; install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	@rm -f .venv/.installed*  # of an earlier interpreter

$(SERVICE): pyproject.toml constraints.txt | $(BIN)/python
	# torch first: by far the largest download, so a later failure does not repeat it
	$(INSTALL) "$$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
	$(INSTALL) --editable .
	# torchaudio's compiled files are linked against CUDA: beside a CPU build of torch they stop its import, and
	# nothing here needs them, so they go, only there
	$(BIN)/python -c 'import torch, sysconfig, pathlib; torch.version.cuda is None and [f.unlink() for f in \
		pathlib.Path(sysconfig.get_path("platlib"), "torchaudio", "lib").glob("*.so")]'
	@touch $@

$(STANDINS): $(SERVICE)
	$(INSTALL) --editable '.[standins]'
	@touch $@

$(DEMO): $(SERVICE)
	$(INSTALL) --editable '.[demo]'
	# the judge of voices; its requirements are the extra above, but for one that has to be compiled
	$(INSTALL) --no-deps resemblyzer==0.1.4
	@touch $@

$(BENCH): $(DEMO)
	$(INSTALL) --editable '.[demo,quality]'
	@touch $@

$(TESTS): $(BENCH)
	$(INSTALL) --editable '.[demo,quality,standins,test]'
	@touch $@

demo: $(DEMO)
	$(BIN)/python -m benchmarks.demo

serve: $(SERVICE)
	$(BIN)/python -m serve_app.cli serve configs/local.yaml $(if $(filter 1,$(LAN)),--lan)

serve-redis: $(STANDINS)
	$(BIN)/python -m serve_app.cli serve configs/local.yaml --stand-ins $(if $(LAN),--lan)

# What the end-to-end tests drive: two browsers, a TURN server, somebody else's WHIP client and the compiler it needs, a
# sound server (Firefox's microphone too) and what PortAudio reaches it by. And a Redis.
TEST_PROGRAMS := chromium firefox-esr turnserver whip-client gcc pulseaudio pactl redis-server
TEST_PACKAGES := chromium firefox-esr coturn simple-whip-client gstreamer1.0-nice gstreamer1.0-plugins-good \
	gstreamer1.0-plugins-bad gcc libc6-dev pulseaudio pulseaudio-utils libasound2-plugins libportaudio2 redis-server

# Installs them where that is allowed; elsewhere the tests that lack one are left out, which pytest tells at its end.
test-programs:
	@missing=$$(for p in $(TEST_PROGRAMS); do command -v $$p >/dev/null || echo $$p; done); \
	test -z "$$missing" \
		|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -q \
			&& DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(TEST_PACKAGES); } \
		|| echo "not installed:" $$missing "- the tests that need them are left out (on Debian: apt-get install $(TEST_PACKAGES))"

test: $(TESTS) test-programs
	$(BIN)/python -m pytest -n 2

# Left out too: what trains, fuzzes, judges by networks, or starts a Python for each test.
LONGER := tests/fuzz tests/training tests/benchmarks tests/serve_app/test_cli.py tests/serve_app/test_elevenlabs.py \
	tests/serve_app/test_serve_command.py tests/serve_app/test_access.py tests/stages/test_golden_chain.py

test-fast: $(TESTS)
	$(BIN)/python -m pytest -m "not (ray or e2e)" $(addprefix --ignore=,$(LONGER))

check: $(TESTS)
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

SECONDS ?= 60
fuzz: $(TESTS)
	SEEDVC_FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest tests/fuzz

bench: $(BENCH)
	$(BIN)/python -m benchmarks.blocks
	$(BIN)/python -m benchmarks.latency --minutes 5

$(LOCK): Makefile | $(BIN)/python
	$(BIN)/python -m pip install --quiet uv==0.13.9
	@touch $@

# One version of everything for all Pythons, without the suffix of a build (+cpu), so that each platform takes its own.
# What uv wrote down of the environments (see pyproject.toml) goes: it stands on every line.
lock: $(LOCK)
	$(BIN)/uv pip compile pyproject.toml --all-extras --upgrade --quiet --no-python-downloads \
		--universal --python-version 3.11 --fork-strategy fewest \
		--no-header --annotation-style line --output-file constraints.txt
	sed -i -e "s/python_full_version < '3.15' and //g" -e "s/ and sys_platform == 'linux'//g" \
		-e "s/ ; sys_platform == 'linux'//" -e '1i # The whole resolved set; `make` installs by it, `make lock` renews it.' \
		constraints.txt
	$(BIN)/python .ci/wheels.py

clean:
	rm -rf .venv demo-out build *.egg-info
