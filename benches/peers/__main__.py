"""The same transfers on PostgreSQL, on etcd and on this project's bank, one after the other on one machine and disk.

    python3 benches/peers [--seconds N] [--warm-up N] [--clients 1,16,64] [--dir DIR] [--json FILE]

Exit status: 0 measured; 1 a system broke, or lost or made money; 2 something is missing or cannot be used; 130 Ctrl-C.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile

import bank
import etcd
import postgres
from common import ACCOUNTS, Broken, Unable, output_of

BATCH = 8190
IN_FLIGHT = 4

NOTES = f"""\
The same for all: three servers on this machine's loopback and one disk, fsync on, every transfer on the disks of two of
the three before its client hears of it; {ACCOUNTS:,} accounts drawn uniformly, one unit each time, refused to whoever has
none; each client has one transfer under way, and all clients are one thread. In the end the balances add up on every
server.

Not the same:
  PostgreSQL  evaluates SQL: a prepared call of a function with two updates is a transaction. One server alone takes
              writes; if it dies, somebody has to choose another. A client whose connection broke has to find out by
              itself what became of its transfer.
  etcd        speaks gRPC; this uses its JSON gateway, which is part of what the servers take, and a client in Python
              (what that takes stands in the last column). All clients share what they saw of balances, so that a
              transfer is one transaction and hardly ever a read. Old values stay until they are compacted. Blind writes
              are two writes that look at nothing: no bank, but what etcd would take at least.
  bank        knows transfers and balances, neither SQL nor keys. A transfer has an id, and is done once however often
              it is sent. Where a client asks for {BATCH:,} together, {IN_FLIGHT} times at once, latencies are those of a
              batch, and the ratios tell what batches are worth: the peers' clients ask for one transfer at a time."""


def arguments():
    parser = argparse.ArgumentParser(prog="benches/peers", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=positive, default=5, help="that each measurement takes")
    parser.add_argument("--warm-up", type=positive, default=2, help="seconds before it")
    parser.add_argument("--clients", type=numbers, default=[1, 16, 64], help="1,16,64 if not given")
    parser.add_argument("--dir", default=f"{bank.ROOT}/target/peers", help="where logs and data go meanwhile")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    return parser.parse_args()


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be a whole number above 0")
    return number


def numbers(text):
    found = [positive(part) for part in text.split(",")]
    # PostgreSQL has a hundred connections, some of them for itself.
    if max(found) > 90:
        raise argparse.ArgumentTypeError("must be numbers of at most 90")
    return found


def check_programs():
    missing = {"postgresql": postgres.directory_of_programs(), "etcd-server": shutil.which("etcd")}
    packages = [package for package, found in missing.items() if not found]
    if packages:
        raise Unable(
            f"missing: {' and '.join(p.removesuffix('-server') for p in packages)}. On Debian or Ubuntu:\n"
            f"    apt-get install --no-install-recommends {' '.join(packages)}\n"
            "(services that they start by themselves are left alone, and may be stopped). Elsewhere, on PATH:\n"
            "PostgreSQL's server and pgbench (often called postgresql-server and postgresql-contrib), and etcd"
        )


def check_disk(place):
    """What kind of file system it is."""
    kind = output_of(["df", "--output=fstype", place]).split()[-1]
    if kind in ("tmpfs", "ramfs"):
        raise Unable(f"{place} is in memory, where a sync costs nothing; name a directory on a disk with --dir")
    return kind


def tell(text):
    print(text, file=sys.stderr, flush=True)


def measure_all(args, place, executable):
    """Only one system runs at a time."""
    rows, versions = [], {}

    def measured(row):
        rows.append(row)
        tell(f"{row.system}, {row.clients} clients: {row.transfers_per_second:,.0f} transfers/s")

    def measure_peer(name, servers):
        versions[name] = servers.version
        for clients in args.clients:
            measured(servers.measure(clients, args.seconds, args.warm_up))
        servers.check()

    with contextlib.ExitStack() as stack:
        measure_peer("PostgreSQL", postgres.Postgres(place, stack))
    with contextlib.ExitStack() as stack:
        servers = etcd.Etcd(place, stack)
        measure_peer("etcd", servers)
        for clients in args.clients:
            measured(servers.measure(clients, args.seconds, args.warm_up, blind=True))
    for clients in args.clients:
        measured(bank.measure(executable, place, clients, args.seconds, args.warm_up))
    measured(bank.measure(executable, place, 1, args.seconds, args.warm_up, BATCH, IN_FLIGHT))
    return rows, versions


def ratios(rows):
    """How many times the rate of each peer the bank's is, by its rows."""
    ours = [row for row in rows if row.system.startswith("bank")]
    most = max(row.clients for row in rows)
    found = []
    for row in ours:
        # What is asked for in batches has nothing to be compared with but the most that peers do.
        clients = row.clients if row.system == "bank" else most
        peers = [peer for peer in rows if peer not in ours and peer.clients == clients]
        times = {peer.system: row.transfers_per_second / peer.transfers_per_second for peer in peers}
        found.append({"system": row.system, "clients": row.clients, "times": times})
    return found


def table(header, rows):
    """Columns as wide as they have to be, numbers to the right."""
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
        for line in lines
    )


def report(rows, versions, kind):
    header = ["", "clients", "transfers/s", "p50 µs", "p99 µs", "processor µs: servers", "clients"]
    cells = [
        [
            row.system,
            str(row.clients),
            f"{row.transfers_per_second:,.0f}",
            f"{row.p50_us:,.0f}",
            f"{row.p99_us:,.0f}",
            f"{row.servers_us:,.1f}",
            f"{row.client_us:,.1f}",
        ]
        for row in rows
    ]
    found = ratios(rows)
    peers = list(found[0]["times"])
    times = [[r["system"], str(r["clients"]), *(f"{r['times'][peer]:,.1f}" for peer in peers)] for r in found]
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    return "\n\n".join(
        [
            f"{words}; {os.cpu_count()} cores, {kind}; processor time is of each transfer, of all servers together",
            table(header, cells),
            table(["rate, in times that of", "clients", *peers], times),
            NOTES,
        ]
    )


def run():
    args = arguments()
    check_programs()
    base = os.path.abspath(args.dir)
    os.makedirs(base, exist_ok=True)
    executable = bank.build()
    with tempfile.TemporaryDirectory(prefix="run-", dir=base) as place:
        # PostgreSQL's user has to get in.
        os.chmod(place, 0o755)
        kind = check_disk(place)
        postgres.check(place)
        rows, versions = measure_all(args, place, executable)
    print(report(rows, versions, kind))
    if args.json:
        figures = {
            "versions": versions,
            "cores": os.cpu_count(),
            "accounts": ACCOUNTS,
            "file_system": kind,
            "seconds": args.seconds,
            "rows": [dataclasses.asdict(row) for row in rows],
            "ratios": ratios(rows),
        }
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)
            file.write("\n")


def main():
    # Whatever ends this program ends its servers on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        run()
    except (Unable, OSError) as e:
        tell(f"error: {e}")
        return 2
    except Broken as e:
        tell(f"error: {e}")
        return 1
    except KeyboardInterrupt:
        tell("interrupted; servers and data are gone")
        return 130
    return 0


sys.exit(main())
