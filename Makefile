# ShardPaxosBank. `make` alone says what there is.

TESTSET ?= data/demo.csv
ARGS    ?=
CARGO   ?= cargo

MUTANT      ?=
MUTANT_ARGS ?=

PERF_DIR     := target/perf
PERF_BANK    ?= --clusters 3 --accounts 1000000
PERF_ARGS    ?= --cross 0.1
PERF_SECONDS ?= 10

SEEDS   ?= 0..10000
MINUTES ?= 10
KILLS   ?= 500
CUTS    ?= 1000
REPORT  ?= target/bench

PEERS_ARGS ?=

MUTATION_DIR := target/mutants-out
SHARD        ?=
SIM_SEEDS    ?= 150

.PHONY: help run test check sim soak kills power model torture overload mutants mutation mutation-report bench bench-peers deploy perf clean-perf
.DEFAULT_GOAL := help

help:
	@echo 'make run      run a set file on nine servers     TESTSET=$(TESTSET)  ARGS="--json"'
	@echo 'make test     all tests'
	@echo 'make check    formatting, and clippy with warnings as errors'
	@echo 'make sim      the simulator, over a range of seeds     SEEDS=$(SEEDS)'
	@echo 'make soak     the simulator on ever new seeds, from where the last soak ended     MINUTES=$(MINUTES)'
	@echo 'make kills    real processes under load: kill -9, and damaged disks     KILLS=$(KILLS)'
	@echo 'make power    real servers whose power goes, over disks that forget     CUTS=$(CUTS)'
	@echo 'make torture  nine processes in network namespaces under load: kills, cut cables, lost packets, full disks     MINUTES=$(MINUTES)'
	@echo 'make overload the same servers with far more requests than they can take: rate and memory'
	@echo 'make model    every schedule within stated bounds, checked: a few minutes on two cores'
	@echo 'make mutants  planted bugs: does the simulator notice each?     MUTANT=   MUTANT_ARGS="--with sim|tests|model --seeds 0..1000 --from 12"'
	@echo 'make mutation SHARD=k/n   cargo-mutants on the k-th of n samples of all mutants   SIM_SEEDS=$(SIM_SEEDS)'
	@echo 'make mutation-report      what became of the mutants of the finished samples, by module'
	@echo 'make bench    rates and latencies, as a page with plots; how fast a server starts, and what it holds over 50 million transfers     REPORT=$(REPORT)'
	@echo 'make bench-peers  the same transfers on PostgreSQL, on etcd and on the bank     PEERS_ARGS="--seconds 5 --json FILE"'
	@echo 'make deploy   linters over data/deploy: systemd unit, Dockerfile, Compose, Kubernetes'
	@echo 'make perf     where each server spends its time under load, with flamegraphs     PERF_BANK="$(PERF_BANK)"  PERF_ARGS="$(PERF_ARGS)"  PERF_SECONDS=$(PERF_SECONDS)'

run:
	$(CARGO) run --release --bin bank -- run $(TESTSET) $(ARGS)

test:
	$(CARGO) test

# The tests explore small bounds; this explores the full ones, one configuration after the other, each with two threads.
model:
	MODEL=full $(CARGO) test --test model -- --nocapture --test-threads=1

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

deploy:
	data/deploy/check.sh

bench:
	$(CARGO) run --release --bin bank -- bench --clusters 3 --accounts 1000000 --cross 0.1 --seconds 3 --floor --report $(REPORT)
	$(CARGO) bench --bench restart
	$(CARGO) bench --bench endurance

# Says what is missing, and how to install it. Without bytecode, which would be left among the sources.
bench-peers:
	@CARGO='$(CARGO)' python3 -B benches/peers $(PEERS_ARGS)

sim:
	$(CARGO) run --release --bin bank -- sim --seeds $(SEEDS)

# Seeds far above those of the tests. Remove target/soak.json to begin again.
soak:
	$(CARGO) run --release --bin bank -- sim --seeds 1000000..1000000000 --minutes $(MINUTES) --progress target/soak.json

# Some ten minutes for 500.
kills:
	TORTURE_KILLS=$(KILLS) $(CARGO) test --release --test e2e torture -- --nocapture

power:
	POWER_CUTS=$(CUTS) $(CARGO) test --release --test power -- --nocapture

torture:
	$(CARGO) bench --bench torture -- --minutes $(MINUTES)

overload:
	$(CARGO) bench --bench torture -- --overload

# Builds the executable once for each of them; MUTANT is the name or the number of one.
mutants:
	tests/mutants/run.sh $(MUTANT_ARGS) $(MUTANT)

mutation:
	@CARGO='$(CARGO)' SIM_SEEDS=$(SIM_SEEDS) .ci/mutation '$(SHARD)' $(MUTATION_DIR)

mutation-report:
	@.ci/mutation-report $(MUTATION_DIR)

perf:
	@CARGO='$(CARGO)' benches/perf.sh $(PERF_DIR) $(PERF_BANK) --seconds $(PERF_SECONDS) $(PERF_ARGS)

clean-perf:
	rm -rf $(PERF_DIR)
