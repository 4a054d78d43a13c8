"""etcd: three members, and clients in one loop that speak to the leader's JSON gateway.

A transfer is one transaction: if both accounts are as the client saw them last, their new balances are written; else it
reads them, and the client tries again. All clients share what they saw, which spares them nearly all second tries.
"""

import base64
import json
import random
import re
import selectors
import socket
import time
import urllib.request

from common import ACCOUNTS, BALANCE, HOST, Broken, Child, free_ports, output_of, row, settle

# Of a transaction, by etcd's default.
MOST_OPERATIONS = 128
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def encoded(text):
    return base64.b64encode(str(text).encode()).decode()


def put(key, value):
    return {"request_put": {"key": key, "value": encoded(value)}}


class Etcd:
    """Three members with a bank: one key for each account."""

    def __init__(self, place, stack):
        self.version = output_of(["etcd", "--version"]).split()[2]
        ports = free_ports(6)
        urls = [(f"http://{HOST}:{ports[n]}", f"http://{HOST}:{ports[n + 3]}") for n in range(3)]
        members = ",".join(f"m{n}={peers}" for n, (_, peers) in enumerate(urls, 1))
        self.servers = []
        for n, (clients, peers) in enumerate(urls, 1):
            command = ["etcd", "--name", f"m{n}", "--data-dir", f"{place}/etcd-m{n}"]
            command += ["--listen-client-urls", clients, "--advertise-client-urls", clients]
            command += ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]
            command += ["--initial-cluster", members, "--logger", "zap", "--log-level", "error"]
            server = Child(f"etcd's m{n}", command, f"{place}/etcd-m{n}.log")
            stack.callback(server.stop)
            self.servers.append(server)
        for server, (clients, _) in zip(self.servers, urls):
            server.wait_until("its being healthy", lambda url=clients: is_healthy(url))
        self.urls = [clients for clients, _ in urls]
        self.leader = next(url for url in self.urls if leads(url))
        self.keys = [encoded(account) for account in range(1, ACCOUNTS + 1)]
        self.others = [encoded(f"blind-{account}") for account in range(1, ACCOUNTS + 1)]
        # What the clients saw last: balance, and the revision that wrote it.
        self.seen = []
        for first in range(0, ACCOUNTS, MOST_OPERATIONS):
            keys = self.keys[first : first + MOST_OPERATIONS]
            reply = call(self.leader, "kv/txn", {"success": [put(key, BALANCE) for key in keys]})
            self.seen += [(BALANCE, reply["header"]["revision"])] * len(keys)

    def measure(self, clients, seconds, warm_up, blind=False):
        settle()
        transfers = BlindWrites(self) if blind else Transfers(self)
        loop = Loop(self.leader, clients, transfers)
        loop.run(warm_up)
        loop.latencies.clear()
        client_before, servers_before = time.process_time(), self.processor_us()
        span = loop.run(seconds)
        client, servers = time.process_time() - client_before, self.processor_us() - servers_before
        latencies = list(loop.latencies)
        # What is under way has to be known before anybody adds up.
        loop.finish()
        name = "etcd, blind writes" if blind else "etcd"
        return row(name, clients, latencies, span, servers, client * 1_000_000)

    def processor_us(self):
        return sum(server.processor_us() for server in self.servers)

    def check(self):
        """The money is all there, whichever member is asked."""
        everything = {"key": encoded("0"), "range_end": encoded(":")}
        for server, url in zip(self.servers, self.urls):
            found = call(url, "kv/range", everything)["kvs"]
            total = sum(int(base64.b64decode(kv["value"])) for kv in found)
            if (len(found), total) != (ACCOUNTS, ACCOUNTS * BALANCE):
                raise Broken(f"{server.name}: {len(found)} balances add up to {total}, not {ACCOUNTS * BALANCE}")


class Transfers:
    """What clients ask for, and what they make of the answers."""

    def __init__(self, etcd):
        self.keys, self.seen = etcd.keys, etcd.seen

    def next(self):
        return random.sample(range(ACCOUNTS), 2)

    def request(self, pair):
        (sender, receiver), keys = pair, [self.keys[account] for account in pair]
        (left, _), (right, _) = self.seen[sender], self.seen[receiver]
        # With too little money it is enough to know that this is so.
        writes = [put(keys[0], left - 1), put(keys[1], right + 1)] if left >= 1 else []
        as_seen = [
            {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": self.seen[account][1]}
            for key, account in zip(keys, pair)
        ]
        return {"compare": as_seen, "success": writes, "failure": [{"request_range": {"key": key}} for key in keys]}

    def is_done(self, pair, request, reply):
        """Notes what the reply says; false if the transfer has to be tried again."""
        if reply.get("succeeded"):
            for account, write in zip(pair, request["success"]):
                balance = int(base64.b64decode(write["request_put"]["value"]))
                self.note(account, balance, reply["header"]["revision"])
            return True
        for account, read in zip(pair, reply["responses"]):
            found = read["response_range"]["kvs"][0]
            self.note(account, int(base64.b64decode(found["value"])), found["mod_revision"])
        return False

    def note(self, account, balance, revision):
        # Replies may overtake each other.
        if int(revision) > int(self.seen[account][1]):
            self.seen[account] = (balance, revision)


class BlindWrites:
    """Two writes in a transaction that looks at nothing: no bank, but what etcd's part in one costs at least."""

    def __init__(self, etcd):
        self.keys = etcd.others

    def next(self):
        return random.sample(range(ACCOUNTS), 2)

    def request(self, pair):
        return {"success": [put(self.keys[account], BALANCE) for account in pair]}

    def is_done(self, _pair, _request, reply):
        return reply.get("succeeded", False)


class Connection:
    """One client: it has one transfer under way."""

    def __init__(self, url):
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""
        self.pair = self.request = None
        self.asked = 0.0

    def send(self, request):
        self.request = request
        body = json.dumps(request, separators=(",", ":")).encode()
        # A request is far smaller than the socket's buffer, which is empty.
        self.socket.sendall(b"POST /v3/kv/txn HTTP/1.1\r\nHost: etcd\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def receive(self):
        """The reply, or None if it is not whole yet."""
        got = self.socket.recv(65536)
        if not got:
            raise Broken("etcd closed a connection")
        self.received += got
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return None
        length = LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200 ") or not length:
            raise Broken(f"etcd answered {self.received.decode(errors='replace')}")
        if len(body) < int(length[1]):
            return None
        self.received = b""
        return json.loads(body)


class Loop:
    """All clients, each of which asks for the next transfer as soon as one is done."""

    def __init__(self, url, clients, transfers):
        self.transfers = transfers
        self.latencies = []
        self.connections = [Connection(url) for _ in range(clients)]
        self.selector = selectors.DefaultSelector()
        for connection in self.connections:
            self.selector.register(connection.socket, selectors.EVENT_READ, connection)
            self.begin(connection)

    def begin(self, connection):
        connection.pair = self.transfers.next()
        connection.asked = time.perf_counter()
        connection.send(self.transfers.request(connection.pair))

    def run(self, seconds):
        """Seconds that it took."""
        start = time.perf_counter()
        while time.perf_counter() < start + seconds:
            self.turn(self.begin)
        return time.perf_counter() - start

    def turn(self, then):
        events = self.selector.select(10)
        if not events:
            raise Broken("etcd did not answer for ten seconds")
        for key, _ in events:
            connection = key.data
            reply = connection.receive()
            if reply is None:
                continue
            if self.transfers.is_done(connection.pair, connection.request, reply):
                self.latencies.append((time.perf_counter() - connection.asked) * 1_000_000)
                then(connection)
            else:
                connection.send(self.transfers.request(connection.pair))

    def finish(self):
        def close(connection):
            self.selector.unregister(connection.socket)
            connection.socket.close()

        while self.selector.get_map():
            self.turn(close)
        self.selector.close()


def call(url, what, body):
    request = urllib.request.Request(f"{url}/v3/{what}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)
    except OSError as e:
        raise Broken(f"etcd, asked for {what}: {e}") from e


def is_healthy(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return json.load(reply)["health"] == "true"
    except OSError:
        return False


def leads(url):
    status = call(url, "maintenance/status", {})
    return status["leader"] == status["header"]["member_id"]
