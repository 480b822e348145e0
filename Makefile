# The root module holds the libraries and cmd, the two others what is heavy.
MODULES := . $(patsubst %/go.mod,%,$(wildcard */go.mod))

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Passed to go test, as in: make test TESTFLAGS='-v -run TestOnce'
TESTFLAGS ?=

# The race detector needs a C compiler. Without one the tests run all the same.
RACE := $(shell [ "$$(go env CGO_ENABLED)" = 1 ] && command -v "$$(go env CC)" >/dev/null && echo -race)

# make demo MESSAGES=100000 BROKER=kafka
MESSAGES ?=
BROKER ?=

# The packages of the module testcontainers that need a Kafka, and go test on them,
# with one Kafka for all.
KAFKA := $(patsubst testcontainers/%,./%/...,$(wildcard testcontainers/kafka testcontainers/kafkaserver))
TEST_KAFKA = echo "== testcontainers, on Kafka (3 minutes, and longer the first time)"; cd testcontainers && \
	../bin/withservers -kafka go test $(RACE) -p 1 -count=1 -timeout 8m $(TESTFLAGS) $(KAFKA)

# The tests that go through a PgBouncer: without -v, by which .ci/run would find those that
# need a session. All of them run without a pooler, and with the race detector, too.
TEST_PGBOUNCER = echo "== through PgBouncer (4 minutes)"; bin/withservers -pgbouncer go test -count=1 -timeout 20m \
	$(filter-out -v,$(TESTFLAGS)) . ./middleware ./outbox ./guard ./cmd/oncemill

# Takes longer than all other tests.
BROKEN_BUILDS = TestTheCrashSuiteFindsBrokenBuilds

# The version of the schema that the release before this one made.
OLD_SCHEMA = $(shell sed -n 's/^const Oldest = //p' schema/schema.go)

.DEFAULT_GOAL := help

.PHONY: help
help: ## List what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Watch redeliveries, panics and kill -9 change nothing (MESSAGES=10000 BROKER=nats|kafka)
	@echo "building the demo, which takes a minute the first time ..."
	@cd examples && go run ./quickstart $(if $(MESSAGES),-messages $(MESSAGES)) $(if $(BROKER),-broker $(BROKER))

# Both take about 20 seconds for 1,000 messages.
.PHONY: demo-email
demo-email: ## The same for 1,000 e-mails, by a mail server that loses its replies (MESSAGES=1000)
	@echo "building the demo, which takes a minute the first time ..."
	@cd examples && go run ./effects -kind email $(if $(MESSAGES),-messages $(MESSAGES))

.PHONY: demo-payment
demo-payment: ## The same for 1,000 card payments, by a Stripe of our own (MESSAGES=1000)
	@echo "building the demo, which takes a minute the first time ..."
	@cd examples && go run ./effects -kind payment $(if $(MESSAGES),-messages $(MESSAGES))

# make crash SECONDS=300 SEED=7; without SEED one is drawn, and printed.
SECONDS ?=
SEED ?=

.PHONY: crash
crash: ## Look for lost and doubled effects while everything fails (SECONDS=60 SEED=7 BROKER=nats|kafka)
	@echo "building the crash suite, which takes a minute the first time ..."
	@cd examples && go run ./crash $(if $(SECONDS),-seconds $(SECONDS)) $(if $(SEED),-seed $(SEED)) $(if $(BROKER),-broker $(BROKER)) $(if $(PROFILE),-profile $(PROFILE))

.PHONY: test
test: bin/withservers ## Run all tests, on the servers that it starts
	@echo "== root module$(if $(RACE),, (without the race detector: install a C compiler))"
	@echo "compiling the tests, which takes some minutes the first time ..."
	@bin/withservers go test $(RACE) -count=1 -timeout 8m $(TESTFLAGS) ./...
	@set -e; for module in $(filter-out .,$(MODULES)); do \
		echo "== $$module"; cd $$module; \
		ONCEMILL_TEST_BACKLOG=$${ONCEMILL_TEST_BACKLOG:-200000} go test -count=1 -timeout 8m $(TESTFLAGS) $$(go list ./... | grep -vE '/(testcontainers/(kafka(server)?|groupcommit|ordered|hostile)|examples/crash)(/|$$)'); \
		cd ..; \
	done
	@echo "== testcontainers, faults in batches$(if $(RACE), (with the race detector))"
	@cd testcontainers && go test $(RACE) -count=1 -timeout 8m $(TESTFLAGS) ./groupcommit
	@echo "== testcontainers, order under faults$(if $(RACE), (with the race detector))"
	@cd testcontainers && go test $(RACE) -count=1 -timeout 8m $(TESTFLAGS) ./ordered
	@echo "== examples, the crash suite for a moment"
	@cd examples && go test -count=1 -timeout 8m -skip '^$(BROKEN_BUILDS)$$' $(TESTFLAGS) ./crash
	@echo "== testcontainers, hostile messages$(if $(RACE), (with the race detector))"
	@cd testcontainers && go test $(RACE) -count=1 -timeout 8m $(TESTFLAGS) ./hostile
	@if [ "$$ONCEMILL_TEST_REQUIRE_KAFKA" = 1 ] || missing=$$(bin/withservers -kafka-available); then \
		$(TEST_KAFKA); \
	else \
		echo "the Kafka tests are left out: $$missing"; \
	fi

	@if [ "$$ONCEMILL_TEST_REQUIRE_PGBOUNCER" = 1 ] || missing=$$(bin/withservers -pgbouncer-available); then \
		$(TEST_PGBOUNCER); \
	else \
		echo "the tests through PgBouncer are left out: $$missing"; \
	fi

.PHONY: test-crash
test-crash: ## Run the crash suite on three seeds, and on builds that lack a rule (8 minutes)
	@echo "== examples, the crash suite on broken builds (8 minutes; ONCEMILL_TEST_CRASH=all: 14)"
	@cd examples && go test -count=1 -timeout 70m -run '^$(BROKEN_BUILDS)$$' $(TESTFLAGS) ./crash

.PHONY: test-pgbouncer
test-pgbouncer: bin/withservers ## Run the tests through PgBouncer, which need version 1.21 of it
	@$(TEST_PGBOUNCER)

.PHONY: test-upgrade
test-upgrade: bin/withservers ## Run the tests on the schema of the release before
	@echo "== on schema version $(OLD_SCHEMA) (3 minutes)"
	@ONCEMILL_TEST_SCHEMA=$(OLD_SCHEMA) bin/withservers go test -count=1 -timeout 8m $(filter-out -v,$(TESTFLAGS)) \
		. ./middleware ./outbox ./consumers/... ./guard/... ./cmd/oncemill

.PHONY: test-kafka
test-kafka: bin/withservers ## Run the tests on Kafka, which need Java 17
	@export ONCEMILL_TEST_REQUIRE_KAFKA=1; $(TEST_KAFKA)

# The first time both fetch Python packages, which takes a minute.
.PHONY: test-clients
test-clients: ## Run SafeAgent's own clients against the guard, which needs Python (python3-venv)
	@echo "running SafeAgent's clients against the guard (a minute longer the first time) ..."
	@cd testcontainers && ONCEMILL_TEST_REQUIRE_PYTHON=1 go test -count=1 -timeout 8m $(TESTFLAGS) ./guardclients/...

.PHONY: test-api
test-api: ## Run schemathesis against the guard, which needs Python (python3-venv)
	@echo "running schemathesis against the guard (a minute longer the first time) ..."
	@cd testcontainers && ONCEMILL_TEST_REQUIRE_PYTHON=1 go test -count=1 -timeout 8m $(TESTFLAGS) ./guardapi/...

# The figures of docs/performance.md want a machine that does nothing else.
SVG ?= $(CURDIR)/$(if $(QUICK),bin,docs)/performance.svg

.PHONY: bench
bench: ## Measure exactly-once beside what people run without it (QUICK=1: 6 minutes, else 30)
	@echo "building the benchmark, which takes a minute the first time ..."
	@mkdir -p $(dir $(SVG))
	@cd examples && go run ./bench -svg $(SVG) $(if $(QUICK),-quick) $(BENCHFLAGS)

.PHONY: bench-guard
bench-guard: ## Measure the guard beside SafeAgent's server and bare SQL (needs python3-venv)
	@echo "building the benchmark, which takes a minute the first time ..."
	@cd examples && go run ./bench-guard $(BENCHFLAGS)

# make soak MINUTES=60 CSV=docs/soak.csv SVG=docs/soak.svg
MINUTES ?= 10
CSV ?= bin/soak.csv

.PHONY: soak
soak: SVG = bin/soak.svg
soak: ## Run at 70% of capacity and watch what must not grow (MINUTES=10 CSV=... SVG=...)
	@echo "building the soak, which takes a minute the first time ..."
	@mkdir -p $(dir $(abspath $(CSV))) $(dir $(abspath $(SVG)))
	@cd examples && go run ./soak -duration $(MINUTES)m -csv $(abspath $(CSV)) -svg $(abspath $(SVG)) $(SOAKFLAGS)

.PHONY: test-short
test-short: ## Run the tests that need no server
	@for module in $(MODULES); do [ $$module = testcontainers ] || dirs="$$dirs $$module"; done; \
	set -e; for module in $$dirs; do \
		echo "== $$module"; \
		(cd $$module && env -u ONCEMILL_TEST_POSTGRES_URL -u ONCEMILL_TEST_NATS_URL go test -short $(TESTFLAGS) ./...); \
	done

.PHONY: vet
vet: ## Run go vet
	@set -e; for module in $(MODULES); do (cd $$module && go vet ./...); done

.PHONY: lint
lint: ## Run staticcheck
	@set -e; for module in $(MODULES); do (cd $$module && go run $(STATICCHECK) ./...); done

.PHONY: fmt-check
fmt-check: ## Fail if a file is not formatted by gofmt
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "run gofmt -w on:"; echo "$$files"; exit 1; }

.PHONY: tidy-check
tidy-check: ## Fail if a go.mod or go.sum is not tidy
	@set -e; for module in $(MODULES); do (cd $$module && go mod tidy -diff); done
	@! grep -n '^replace' go.mod || { echo "go.mod: with a replace go install does not work"; exit 1; }

.PHONY: build
build: ## Build everything, and the command into bin
	@set -e; for module in $(MODULES); do (cd $$module && go build -o /dev/null ./...); done
	@go build -o bin/ ./cmd/...

.PHONY: clean
clean: ## Remove what was built
	@rm -rf bin

# Go knows better than make whether it is up to date.
.PHONY: bin/withservers
bin/withservers:
	@echo "building bin/withservers ..."
	@cd testcontainers && go build -o ../bin/withservers ./cmd/withservers
