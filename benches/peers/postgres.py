"""PostgreSQL: a primary and two standbys, one of which has each commit on its disk before the client hears of it."""

import glob
import os
import pwd
import resource
import shutil
import subprocess

from common import ACCOUNTS, BALANCE, HOST, Broken, Child, Unable, free_ports, output_of, row, settle

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = ["initdb", "postgres", "pg_basebackup", "psql", "pgbench"]
# The server refuses to run as root.
USER = "postgres" if os.getuid() == 0 else None
SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "listen_addresses": HOST,
    "unix_socket_directories": "",
}
STANDBYS = ["s1", "s2"]


def directory_of_programs():
    """Debian keeps the servers' programs apart from each other, by version, and outside of PATH."""
    versions = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda p: float(p.split("/")[-2]), reverse=True)
    on_path = shutil.which("initdb")
    for place in versions + ([os.path.dirname(os.path.realpath(on_path))] if on_path else []):
        if all(os.access(f"{place}/{program}", os.X_OK) for program in PROGRAMS):
            return place
    return None


def check(place):
    """Raises `Unable` if the servers could not work in `place`."""
    if USER is None:
        return
    try:
        pwd.getpwnam(USER)
    except KeyError:
        raise Unable(f"PostgreSQL does not run as root, and there is no user {USER}; run this as a user") from None
    if subprocess.run(["test", "-x", place], user=USER, group=USER, extra_groups=[], check=False).returncode != 0:
        raise Unable(
            f"PostgreSQL does not run as root, and the user {USER} cannot enter {place}; name a directory with --dir "
            "whose parents everybody may enter, or run this as another user"
        )


class Postgres:
    """Three servers with a bank."""

    def __init__(self, place, stack):
        self.bin = directory_of_programs()
        self.version = output_of([f"{self.bin}/postgres", "--version"]).split()[2]
        self.place = f"{place}/postgres"
        os.mkdir(self.place)
        if USER:
            shutil.chown(self.place, USER, USER)
        self.ports = free_ports(3)
        initdb = ["initdb", "-D", f"{self.place}/primary", "-U", "postgres", "-A", "trust", "--encoding=UTF8"]
        self.run(initdb + ["--locale=C", "--no-sync"])
        self.servers = [self.start("primary", self.ports[0], stack)]
        for name, port in zip(STANDBYS, self.ports[1:]):
            copy = ["pg_basebackup", "-D", f"{self.place}/{name}", "-R", "-X", "stream", "-c", "fast"]
            self.run(copy + self.address(self.ports[0]))
            self.servers.append(self.start(name, port, stack))
        # Only now: nothing could commit before.
        quorum = f"ANY 1 ({', '.join(STANDBYS)})"
        self.ask(f"ALTER SYSTEM SET synchronous_standby_names = '{quorum}'")
        self.ask("SELECT pg_reload_conf()")
        in_quorum = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'"
        self.servers[0].wait_until("two synchronous standbys", lambda: self.ask(in_quorum) == "2")
        schema = ["psql", "-q", "-v", "ON_ERROR_STOP=1", "-v", f"accounts={ACCOUNTS}", "-v", f"balance={BALANCE}"]
        self.run(schema + ["-f", f"{HERE}/schema.sql", "postgres"] + self.address(self.ports[0]), user=None)

    def address(self, port):
        return ["-h", HOST, "-p", str(port), "-U", "postgres"]

    def run(self, command, user=USER):
        return output_of([f"{self.bin}/{command[0]}", *command[1:]], user=user)

    def ask(self, statement, port=None):
        return self.run(["psql", "-XAtqc", statement, "postgres"] + self.address(port or self.ports[0])).strip()

    def start(self, name, port, stack):
        command = [f"{self.bin}/postgres", "-D", f"{self.place}/{name}", "-p", str(port), "-c", f"cluster_name={name}"]
        for key, value in SETTINGS.items():
            command += ["-c", f"{key}={value}"]
        server = Child(f"PostgreSQL's {name}", command, f"{self.place}/{name}.log", USER)
        stack.callback(server.stop)
        ready = [f"{self.bin}/pg_isready", "-q", *self.address(port)]
        server.wait_until("its being ready", lambda: subprocess.run(ready, check=False).returncode == 0)
        return server

    def measure(self, clients, seconds, warm_up):
        self.bench(clients, warm_up, "warm-up")
        self.ask("CHECKPOINT")
        settle()
        client_before, servers_before = own_children_us(), self.processor_us()
        latencies, span = self.bench(clients, seconds, "measured")
        client, servers = own_children_us() - client_before, self.processor_us() - servers_before
        return row("PostgreSQL", clients, latencies, span, servers, client)

    def processor_us(self):
        return sum(server.processor_us() for server in self.servers)

    def bench(self, clients, seconds, name):
        """Microseconds of each transfer, and the seconds that all of them took."""
        log = f"{os.path.dirname(self.place)}/pgbench-{name}-{clients}"
        command = ["pgbench", "-n", "-M", "prepared", "-c", str(clients), "-j", "1", "-T", str(seconds)]
        command += ["-D", f"accounts={ACCOUNTS}", "-f", f"{HERE}/transfer.pgbench", "--log", f"--log-prefix={log}"]
        self.run(command + self.address(self.ports[0]) + ["postgres"], user=None)
        latencies, ends = [], []
        for path in glob.glob(f"{log}.*"):
            with open(path, encoding="ascii") as lines:
                for line in lines:
                    fields = line.split()
                    latencies.append(int(fields[2]))
                    ends.append(int(fields[4]) * 1_000_000 + int(fields[5]))
            os.unlink(path)
        # Connecting is not counted: the first transfer's beginning is the run's.
        return latencies, (max(ends) - min(ends) + latencies[0]) / 1_000_000 if ends else seconds

    def check(self):
        """The money is all there, and the standbys hold the same."""
        end = self.ask("SELECT pg_current_wal_flush_lsn()")
        state = "SELECT sum(balance), md5(string_agg(id || ':' || balance, ',' ORDER BY id)) FROM account"
        expected = self.ask(state)
        if not expected.startswith(f"{ACCOUNTS * BALANCE}|"):
            raise Broken(f"PostgreSQL: balances add up to {expected.split('|')[0]}, not {ACCOUNTS * BALANCE}")
        for server, port in zip(self.servers[1:], self.ports[1:]):
            applied = f"SELECT pg_last_wal_replay_lsn() >= '{end}'"
            server.wait_until("what was committed last", lambda port=port: self.ask(applied, port) == "t")
            if self.ask(state, port) != expected:
                raise Broken(f"{server.name} holds other balances than the primary")


def own_children_us():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1_000_000
