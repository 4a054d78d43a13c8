"""This project's bank, as `bank bench` drives and checks it."""

import json
import os
import subprocess

from common import ACCOUNTS, BALANCE, Child, Row, Unable, settle

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def build():
    """The executable."""
    cargo = os.environ.get("CARGO", "cargo").split()
    build_it = [*cargo, "build", "--release", "--bin", "bank", "--message-format", "json-render-diagnostics"]
    try:
        # Its errors and progress are for whoever watches.
        done = subprocess.run(build_it, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    except FileNotFoundError:
        raise Unable("cargo is missing: install a Rust toolchain of 1.89 or later") from None
    if done.returncode != 0:
        raise Unable("the bank does not build; see above")
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return next(m["executable"] for m in messages if m.get("executable"))


def measure(executable, place, clients, seconds, warm_up, batch=1, in_flight=1):
    settle()
    command = [executable, "bench", "--processes", "--json", "--data-dir", place]
    for flag, value in {
        "accounts": ACCOUNTS,
        "balance": BALANCE,
        "clients": clients,
        "batch": batch,
        "in-flight": in_flight,
        "seconds": seconds,
        "warm-up": warm_up,
    }.items():
        command += [f"--{flag}", str(value)]
    bench = Child("bank bench", command, f"{place}/bank.log")
    try:
        bench.wait()
    finally:
        bench.stop()
    with open(bench.log, encoding="utf-8") as log:
        figures = json.loads(next(line for line in log if line.startswith("{")))
    processor = {name: ns / 1000 for name, ns in figures["cpu_ns_per_transfer_by"].items()}
    client_us = processor.pop("clients")
    latency = figures["latency_us"]["batch"]
    system = "bank" if batch == 1 else f"bank, batches of {batch:,}"
    rate = figures["throughput_tps"]
    return Row(system, clients, rate, latency["p50"], latency["p99"], sum(processor.values()), client_us)
