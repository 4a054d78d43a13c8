"""What all three systems need: errors, child processes, conditions that are waited for, and figures."""

import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass

ACCOUNTS = 10_000
BALANCE = 1_000_000
HOST = "127.0.0.1"
PATIENCE = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


class Unable(Exception):
    """Something that has to be there is not; the text says what to do."""


class Broken(Exception):
    """A system did not do what it must."""


@dataclass
class Row:
    """What one system did for one number of clients."""

    system: str
    clients: int
    transfers_per_second: float
    p50_us: float
    p99_us: float
    # Processor time of a transfer: of all servers together, and of all clients.
    servers_us: float
    client_us: float


def quantile(ordered, share):
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def row(system, clients, latencies_us, seconds, servers_us, client_us):
    """`latencies_us`: of each transfer that was committed in these seconds; the other times are sums."""
    if not latencies_us:
        raise Broken(f"{system}: no transfer was committed by {clients} clients in {seconds:.1f} s")
    latencies_us.sort()
    count = len(latencies_us)
    p50, p99 = quantile(latencies_us, 0.5), quantile(latencies_us, 0.99)
    return Row(system, clients, count / seconds, p50, p99, servers_us / count, client_us / count)


def settle():
    """What was written so far, and the blocks of files that are gone, are not the load of the next measurement."""
    os.sync()
    # A disk that still gives up blocks does not say so: nothing to wait for but time.
    time.sleep(3)


def free_ports(count):
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Child:
    """A process that is told to stop when it is no longer wanted, with a log of its own."""

    def __init__(self, name, command, log, user=None):
        self.name, self.log = name, log
        with open(log, "wb") as out:
            # In a session of its own, for Ctrl-C to reach this program alone, which then stops everything in order.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, **as_user(user)
            )

    def wait_until(self, what, condition):
        """Waits until `condition` holds, which asks the server and may fail while it is not there yet."""
        limit = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None:
                raise Broken(f"{self.name} ended before {what}; its last words:\n{self.last_words()}")
            if time.monotonic() > limit:
                raise Broken(f"{self.name}: no sign of {what} in {PATIENCE:.0f} s; its log:\n{self.last_words()}")
            time.sleep(0.02)

    def wait(self):
        """Waits for its end, which has to be a good one."""
        status = self.process.wait()
        if status != 0:
            raise Broken(f"{self.name} ended with {status}:\n{self.last_words()}")

    def last_words(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return "".join(log.readlines()[-8:])

    def processor_us(self):
        """Of this process, and of its children whether they still run or not."""
        pid = self.process.pid
        total = 0
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                    fields = stat.read().rpartition(")")[2].split()
            except OSError:
                continue
            parent, own, of_ended = int(fields[1]), fields[11:13], fields[13:15]
            if int(entry) == pid:
                total += sum(map(int, own + of_ended))
            elif parent == pid:
                total += sum(map(int, own))
        return total * 1_000_000 / TICKS

    def stop(self):
        # For PostgreSQL this is the fast shutdown; `bank bench` stops its servers first.
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def as_user(user):
    return {"user": user, "group": user, "extra_groups": []} if user else {}


def output_of(command, user=None, problem=Broken):
    """What a command prints that has to succeed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, **as_user(user)
    )
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()
        raise problem(f"`{' '.join(map(str, command))}` ended with {done.returncode}:\n{words}")
    return done.stdout
