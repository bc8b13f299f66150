# Everything a contributor types. `make` lists it.

GO   ?= go
TOOL  = $(GO) tool -modfile=tools.mod
# Runs what follows on throw-away stores.
ON_STORES = MUBATCH_TEST_REQUIRE=1 $(GO) run ./cmd/mubatch dev --exec --
# The race detector needs a C compiler.
RACE = $(if $(filter 1,$(shell $(GO) env CGO_ENABLED)),-race,)

.DEFAULT_GOAL := help
.PHONY: help run test simulation kill questions import-shop edit timers sdks demo-partners build lint fmt bench generate check-generated deps test-deps clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: deps ## Start everything on private stores and show the demo, until Ctrl-C
	@$(GO) run ./cmd/mubatch dev --demo

test: test-deps ## Run every test against a real Postgres and Redis, started for the run
	$(ON_STORES) $(GO) test -timeout 30m $(RACE) ./...

simulation: ## Run random histories and rules through the lanes' logic, with faults, against a naive fold and brute force
	$(GO) test ./profiles -run 'TestTheStateIsAFunction|AgreeWithLookingAtEverything' -v

kill: deps ## Kill the server, Redis and Postgres 60 times while the demo replays, and hold the end to SQL
	$(GO) test ./cmd/mubatch -run TestKillsLoseAndDoubleNothing -count=1 -v -kills 60

questions: deps ## Ask marketers' questions as of three dates, by segments and by SQL; FILE=… for all of the shop's sales
	$(ON_STORES) $(GO) test ./cmd/mubatch -run TestSegmentsAnswerAsSQLDoes -count=1 -v $(if $(FILE),-sales $(abspath $(FILE)))

import-shop: deps ## Import the shop's orders as CSV, kill the importer and the server meanwhile, and compare with a replay; FILE=… as above
	$(ON_STORES) $(GO) test ./cmd/mubatch -run TestAnImportIsWhatAReplayIs -count=1 -v -timeout 30m $(if $(FILE),-sales $(abspath $(FILE)))

edit: deps ## Edit a segment of 100,000 profiles while 1,000 events/s come in, and hold every change to the rule
	$(ON_STORES) $(GO) test ./cmd/mubatch -run TestAnEditDuringTrafficIsExact -count=1 -v -edit 100000

timers: deps ## End a million memberships in the same second, and tell what it does to events
	$(ON_STORES) $(GO) test ./collector -run '^$$' -bench BenchmarkTimers -timers 1000000 -timeout 30m

sdks: test-deps ## Run the official client libraries, in Node, Chromium and Go, against a server that is killed in between
	$(ON_STORES) $(GO) test ./cmd/mubatch -run 'TestOfficialSDKs|TestOneVisitorOfThreeSDKs' -count=1 -v

demo-partners: deps ## Show the shop's segments arriving at a stand-in of every partner, with the ledger's summary; FILE=… as above
	@$(ON_STORES) $(GO) test ./cmd/mubatch -run TestTheShopReachesItsPartners -count=1 -demo.partners $(if $(FILE),-sales $(abspath $(FILE)))

bench: deps ## Run the benchmarks against real stores
	$(ON_STORES) $(GO) test -run '^$$' -bench . -benchmem ./...

build: ## Build bin/mubatch
	$(GO) build -trimpath -o bin/mubatch ./cmd/mubatch

lint: check-generated ## Vet, staticcheck, the format, and what is generated
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	@unformatted=$$($(TOOL) gofumpt -l .) && if [ -n "$$unformatted" ]; then \
		echo "not in gofumpt's format, which make fmt brings them into:"; echo "$$unformatted"; exit 1; fi

fmt: ## Bring the Go files into gofumpt's format
	$(TOOL) gofumpt -w .

generate: ## Make the generated files anew, go.mod and go.sum among them
	$(GO) generate ./...
	$(GO) mod tidy

check-generated: ## Fail if make generate would change a file
	@state() { git diff HEAD; git status --porcelain; }; \
	git rev-parse --quiet --verify HEAD >/dev/null && before=$$(state | cksum) && $(MAKE) --no-print-directory generate >/dev/null && \
	if [ "$$before" != "$$(state | cksum)" ]; then \
		echo "make generate changed files that are to be committed:"; git status --short; exit 1; fi

deps: ## Install Postgres and Redis where they are missing and we may; starts no service
	@.ci/deps

test-deps: ## The same, and what the tests of client libraries need: Node, npm and Chromium
	@.ci/deps tests

clean: ## Remove what was built, and the data of make run
	rm -rf bin .mubatch
