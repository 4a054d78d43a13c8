//! The world: virtual time, the queue of what happens next, servers, coordinators, and the harm done to them.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Timeouts, Topology};
use crate::drive;
use crate::shard::Input;
use crate::sim::checker::Checker;
use crate::sim::clients::Client;
use crate::sim::network::{Network, Packet, Place, Weather};
use crate::sim::server::{Harm, Outbox, Running, Sent, Server};
use crate::sim::text;
use crate::storage::{Expected, Identity, Kept, StorageError, Wal};
use crate::txn;
use crate::txn::message::Request;
use crate::types::{AccountId, ClientId, NodeId, Time};
use crate::workload::SplitMix64;

/// How long a connection attempt waits for an answer.
const CONNECT_TIMEOUT_US: u64 = 300_000;
/// Turns in a row that a deadline in the past may bring about.
pub(super) const SPIN_LIMIT: u32 = 50;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    pub topology: Topology,
    pub timeouts: Timeouts,
    pub seed: u64,
    pub weather: Weather,
    /// How long a sync takes.
    pub sync_us: (u64, u64),
    pub segment_bytes: u64,
    pub trace: Trace,
}

/// What becomes of the log of everything that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trace {
    Off,
    /// Kept in [`World::log`].
    Keep,
    /// Printed at once, so that it is there even if the run panics.
    Print,
}

enum Event {
    Arrive { from: Place, to: Place, packet: Packet },
    Wake(Place),
    ConnectTimeout { owner: Place, server: NodeId, connection: ClientId },
}

/// A connection as its opener sees it.
struct Connection {
    id: ClientId,
    open: bool,
}

pub struct World {
    pub options: Options,
    pub now: Time,
    pub rng: SplitMix64,
    pub network: Network,
    pub servers: BTreeMap<NodeId, Server>,
    pub clients: BTreeMap<u32, Client>,
    pub checker: Checker,
    /// The log, if one is written; scripts take its lines away.
    pub log: Vec<String>,
    /// Whether heartbeats are logged.
    pub chatter: bool,
    queue: BTreeMap<(Time, u64), Event>,
    next_event: u64,
    pub(super) wakes: BTreeMap<Place, Time>,
    connections: BTreeMap<(Place, NodeId), Connection>,
    /// Probes that were sent, so that the log can tell their answers from others.
    probes: BTreeSet<(ClientId, u64)>,
    next_connection: u64,
    pub(super) next_client: u32,
    pub(super) next_tag: u64,
}

impl World {
    /// Formats all disks and starts all servers.
    pub fn new(options: Options) -> World {
        let mut world = World {
            options,
            now: Time(0),
            rng: SplitMix64::new(options.seed),
            network: Network::new(options.weather),
            servers: options.topology.servers().map(|id| (id, Server::new(id))).collect(),
            clients: BTreeMap::new(),
            checker: Checker::new(options.topology),
            log: Vec::new(),
            chatter: false,
            queue: BTreeMap::new(),
            next_event: 0,
            wakes: BTreeMap::new(),
            connections: BTreeMap::new(),
            probes: BTreeSet::new(),
            next_connection: 1,
            next_client: 1,
            next_tag: 1,
        };
        for id in options.topology.servers() {
            let identity = Identity {
                cluster_id: 1,
                topology: options.topology,
                server: id,
                incarnation: u128::from(id.0),
            };
            let disk = world.servers[&id].disk.clone();
            Wal::format(disk, identity, options.segment_bytes).expect("S3: a new disk takes a log");
            world.start(id);
        }
        world
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        let text = |now: Time| format!("{:>9.3} {}", now.0 as f64 / 1000.0, line());
        match self.options.trace {
            Trace::Off => {}
            Trace::Keep => self.log.push(text(self.now)),
            Trace::Print => println!("{}", text(self.now)),
        }
    }

    fn server(&mut self, id: NodeId) -> &mut Server {
        self.servers.get_mut(&id).expect("a server of this topology")
    }

    // ---- time ----

    fn schedule(&mut self, at: Time, event: Event) {
        self.queue.insert((at.max(self.now), self.next_event), event);
        self.next_event += 1;
    }

    /// Wants a turn for this place at `at`, unless one is due earlier anyway.
    pub(super) fn wake(&mut self, place: Place, at: Time) {
        let at = at.max(self.now);
        if self.wakes.get(&place).is_none_or(|due| at < *due) {
            self.wakes.insert(place, at);
            self.schedule(at, Event::Wake(place));
        }
    }

    /// Lets the next thing happen; false if nothing ever will.
    pub fn step(&mut self) -> bool {
        let Some(((at, _), event)) = self.queue.pop_first() else { return false };
        self.now = at;
        match event {
            Event::Arrive { from, to, packet } => self.arrive(from, to, packet),
            Event::Wake(place) => {
                if self.wakes.get(&place) == Some(&at) {
                    self.wakes.remove(&place);
                    match place {
                        Place::Server(id) => self.server_turn(id),
                        Place::Client(id) => self.client_turn(id),
                    }
                }
            }
            Event::ConnectTimeout { owner, server, connection } => {
                let waiting = |c: &Connection| c.id == connection && !c.open;
                if self.connections.get(&(owner, server)).is_some_and(waiting) {
                    self.disconnected(owner, server);
                }
            }
        }
        true
    }

    pub fn run_until(&mut self, end: Time) {
        while self.queue.first_key_value().is_some_and(|((at, _), _)| *at <= end) {
            self.step();
        }
        self.now = self.now.max(end);
    }

    // ---- the network ----

    fn is_alive(&self, place: Place) -> bool {
        match place {
            Place::Server(id) => self.servers[&id].is_up(),
            Place::Client(id) => self.clients.contains_key(&id),
        }
    }

    pub(super) fn send(&mut self, at: Time, from: Place, to: Place, packet: Packet) {
        for (arrival, packet) in self.network.route(&mut self.rng, at, from, to, packet) {
            self.schedule(arrival, Event::Arrive { from, to, packet });
        }
    }

    /// Lets everything go that was held back, in order.
    pub fn release(&mut self) {
        for (from, to, packet) in self.network.release() {
            self.schedule(self.now, Event::Arrive { from, to, packet });
        }
    }

    fn arrive(&mut self, from: Place, to: Place, packet: Packet) {
        let cable = |s: &Self, p| matches!(p, Place::Server(id) if s.servers[&id].failed);
        if self.network.is_cut(from, to) || cable(self, from) || cable(self, to) {
            return;
        }
        if !self.is_alive(to) {
            if let (Packet::Open(id), Place::Server(_)) = (&packet, to) {
                self.send(self.now, to, from, Packet::Reset(*id));
            }
            return;
        }
        match (packet, to, from) {
            (Packet::Peer(message), Place::Server(id), Place::Server(from)) => {
                self.push(id, Input::Peer { from, message });
            }
            (Packet::Open(connection), Place::Server(id), _) => {
                self.server(id).clients.insert(connection, from);
                self.send(self.now, to, from, Packet::Opened(connection));
            }
            (Packet::Request(client, request), Place::Server(id), _) => {
                if self.servers[&id].clients.contains_key(&client) {
                    self.push(id, Input::Request { client, request });
                } else {
                    self.send(self.now, to, from, Packet::Reset(client));
                }
            }
            (Packet::Close(client), Place::Server(id), _) => {
                if self.server(id).clients.remove(&client).is_some() {
                    self.push(id, Input::ClientGone(client));
                }
            }
            (Packet::Opened(connection), _, Place::Server(server)) => {
                let known = self.connections.get_mut(&(to, server)).filter(|c| c.id == connection);
                if let Some(known) = known {
                    known.open = true;
                    self.tell(to, txn::Input::Connected(server));
                }
            }
            (Packet::Response(connection, response), _, Place::Server(server)) => {
                if self.connections.get(&(to, server)).is_some_and(|c| c.id == connection && c.open) {
                    self.tell(to, txn::Input::Response { from: server, response });
                }
            }
            (Packet::Reset(connection), _, Place::Server(server)) => {
                if self.connections.get(&(to, server)).is_some_and(|c| c.id == connection) {
                    self.disconnected(to, server);
                }
            }
            (packet, ..) => panic!("the world cannot deliver {packet:?} from {from} to {to}"),
        }
    }

    fn push(&mut self, id: NodeId, input: Input) {
        let server = self.server(id);
        server.inbox.push(input);
        let at = server.busy_until;
        self.wake(Place::Server(id), at);
    }

    /// Hands an input to a coordinator, a client's or a server's own.
    pub(super) fn tell(&mut self, owner: Place, input: txn::Input) {
        match owner {
            Place::Server(id) => self.push(id, Input::Remote(input)),
            Place::Client(id) => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.inbox.push(input);
                    self.wake(owner, self.now);
                }
            }
        }
    }

    fn disconnected(&mut self, owner: Place, server: NodeId) {
        self.connections.remove(&(owner, server));
        self.tell(owner, txn::Input::Disconnected(server));
    }

    pub(super) fn connect(&mut self, owner: Place, server: NodeId) {
        if self.connections.contains_key(&(owner, server)) {
            return;
        }
        let id = ClientId(self.next_connection);
        self.next_connection += 1;
        self.connections.insert((owner, server), Connection { id, open: false });
        self.send(self.now, owner, Place::Server(server), Packet::Open(id));
        let at = Time(self.now.0 + CONNECT_TIMEOUT_US);
        self.schedule(at, Event::ConnectTimeout { owner, server, connection: id });
    }

    pub(super) fn remember_probe(&mut self, connection: ClientId, request: &Request) {
        if self.options.trace != Trace::Off && matches!(request, Request::Probe { .. }) {
            self.probes.insert((connection, request.number()));
        }
    }

    pub(super) fn open_connection(&self, owner: Place, server: NodeId) -> Option<ClientId> {
        self.connections.get(&(owner, server)).filter(|c| c.open).map(|c| c.id)
    }

    // ---- servers ----

    fn server_turn(&mut self, id: NodeId) {
        let (now, random) = (self.now, self.rng.next_u64());
        let (low, high) = self.options.sync_us;
        let sync_us = low + self.rng.below(high - low + 1);
        let server = self.servers.get_mut(&id).expect("a server of this topology");
        if !server.is_up() {
            return;
        }
        if server.busy_until > now {
            let at = server.busy_until;
            return self.wake(Place::Server(id), at);
        }
        let Some(running) = &mut server.running else { return };
        let mut inputs = std::mem::take(&mut server.inbox);
        server.spinning = if inputs.is_empty() { server.spinning + 1 } else { 0 };
        if running.shard.next_deadline() <= now {
            inputs.push(Input::Timer { random });
        } else if inputs.is_empty() && !running.shard.has_backlog() {
            server.spinning = 0;
            let at = running.shard.next_deadline();
            return self.wake(Place::Server(id), at);
        }
        let mut outbox = Outbox::new(now, sync_us);
        let done = drive::turn(now, &mut running.shard, &mut running.wal, inputs, &mut outbox);
        let done = done.and_then(|()| running.wal.prepare_ahead().map(drop));
        self.checker.observe(&running.shard, false);

        let dies = server.dies_before_release && outbox.syncs > 0;
        server.busy_until = outbox.at;
        let mut wake = running.shard.next_deadline();
        if running.shard.has_backlog() {
            wake = now;
        }
        if wake > now {
            server.spinning = 0;
        }
        assert!(server.spinning < SPIN_LIMIT, "{id} spins: its deadline {wake:?} never moves at {now:?}");
        let wake = wake.max(outbox.at);
        for (at, syncs, sent) in outbox.sent {
            if !dies || syncs == 0 {
                self.dispatch(at, id, sent);
            }
        }
        if let Err(e) = done {
            self.note(|| format!("{id} stops: {e}"));
            self.crash(id);
        } else if dies {
            self.crash(id);
        } else {
            self.wake(Place::Server(id), wake);
        }
    }

    fn dispatch(&mut self, at: Time, id: NodeId, sent: Sent) {
        let me = Place::Server(id);
        match sent {
            Sent::Peer(to, message) => {
                if self.chatter || !text::is_chatter(&message) {
                    self.note(|| format!("{id} → {to}  {}", text::message(&message)));
                }
                self.send(at, me, Place::Server(to), Packet::Peer(message));
            }
            Sent::Client(client, response) => {
                let Some(to) = self.servers[&id].clients.get(&client).copied() else { return };
                let probe = self.probes.contains(&(client, response.number()));
                let what = if probe { "Probe: " } else { "" };
                self.note(|| format!("{id} → {to}  {what}{}", text::response(&response)));
                self.send(at, me, to, Packet::Response(client, response));
            }
            Sent::Remote(to, request) => {
                self.note(|| format!("{id} → {to}  {}", text::request(&request)));
                if let Some(connection) = self.open_connection(me, to) {
                    self.remember_probe(connection, &request);
                    self.send(at, me, Place::Server(to), Packet::Request(connection, request));
                } else {
                    // As the event loop does: a request that could not be handed over is answered by that fact.
                    self.tell(me, txn::Input::Disconnected(to));
                }
            }
            Sent::Connect(to) => self.connect(me, to),
            Sent::Paxos(event) => self.note(|| format!("{id} {event:?}")),
            Sent::Shard(event) => {
                if !matches!(event, crate::shard::Event::Led { .. }) {
                    self.note(|| format!("{id} {event:?}"));
                }
            }
            Sent::Synced => self.note(|| format!("{id} synced")),
        }
    }

    /// The power goes, or only the process dies: what was not synced is lost wholly, in part, or not at all.
    pub fn crash(&mut self, id: NodeId) {
        self.note(|| format!("{id} crashes"));
        let (power, mut dice) = (self.rng.one_in(2), self.rng.clone());
        self.rng.next_u64();
        let server = self.server(id);
        server.running = None;
        server.failed = false;
        server.dies_before_release = false;
        server.inbox.clear();
        server.busy_until = Time(0);
        server.disk.set_fuse(None);
        if power {
            server.disk.inner.crash(|_| match dice.below(3) {
                0 => Kept::Lost,
                1 => Kept::Whole,
                _ => Kept::Sectors(dice.next_u64()),
            });
        } else {
            server.disk.inner.kill();
        }
        self.wakes.remove(&Place::Server(id));
        self.drop_clients(id);
        self.drop_connections(Place::Server(id));
    }

    /// Everybody who had a connection to this server learns that it is gone.
    fn drop_clients(&mut self, id: NodeId) {
        let mut gone: BTreeSet<(ClientId, Place)> =
            std::mem::take(&mut self.server(id).clients).into_iter().collect();
        // Those whose opening is still on its way learn it as well.
        gone.extend(self.connections.iter().filter(|((_, s), _)| *s == id).map(|((o, _), c)| (c.id, *o)));
        for (connection, owner) in gone {
            let at = Time(self.now.0 + 1 + self.rng.below(20_000));
            // A cable that was pulled carries no news; the operating system's time-outs do.
            let open = self.connections.get(&(owner, id)).is_some_and(|c| c.id == connection);
            if open {
                self.connections.insert((owner, id), Connection { id: connection, open: false });
                self.schedule(at, Event::ConnectTimeout { owner, server: id, connection });
            }
        }
    }

    /// This place's own connections are gone; the servers at their ends notice.
    pub(super) fn drop_connections(&mut self, owner: Place) -> Vec<NodeId> {
        let mine: Vec<NodeId> =
            self.connections.keys().filter(|(o, _)| *o == owner).map(|(_, s)| *s).collect();
        for server in &mine {
            if let Some(connection) = self.connections.remove(&(owner, *server)) {
                let at = Time(self.now.0 + 1 + self.rng.below(20_000));
                let packet = Packet::Close(connection.id);
                self.schedule(at, Event::Arrive { from: owner, to: Place::Server(*server), packet });
            }
        }
        mine
    }

    /// Starts a server from its disk; false if its power went again meanwhile.
    pub fn start(&mut self, id: NodeId) -> bool {
        let Options { topology, timeouts, .. } = self.options;
        let (now, random) = (self.now, self.rng.next_u64());
        let server = self.servers.get_mut(&id).expect("a server of this topology");
        assert!(server.running.is_none(), "{id} runs already");
        let expected = Expected { cluster_id: Some(1), topology, server: id };
        let started = Wal::open(server.disk.clone(), expected).and_then(|(wal, recovered)| {
            let shard = drive::restore(id, topology, timeouts, now, random, &wal, recovered)?;
            Ok(Running { shard, wal })
        });
        match started {
            Ok(running) => {
                let replica = running.shard.replica();
                let (promised, decided, last) =
                    (replica.promised(), replica.decided(), running.wal.last_slot());
                self.checker.observe(&running.shard, true);
                self.server(id).running = Some(running);
                self.note(|| {
                    format!("{id} starts: promised {promised}, decided {decided}, log up to {last}")
                });
                self.wake(Place::Server(id), now);
                true
            }
            Err(StorageError::Io { source, .. }) => {
                self.note(|| format!("{id} does not start: {source}"));
                self.crash(id);
                false
            }
            Err(e) => panic!("S1: {id} finds its own log unusable: {e}"),
        }
    }

    /// Pulls the cable of a server and stops its timers; its memory stays.
    pub fn fail(&mut self, id: NodeId) {
        if !self.servers[&id].is_up() {
            return;
        }
        self.note(|| format!("{id} fails"));
        let gone: Vec<ClientId> = self.servers[&id].clients.keys().copied().collect();
        self.drop_clients(id);
        let mine = self.drop_connections(Place::Server(id));
        let server = self.server(id);
        server.failed = true;
        // What it will notice when it is back.
        server.inbox = vec![Input::Resume];
        server.inbox.extend(gone.into_iter().map(Input::ClientGone));
        server.inbox.extend(mine.into_iter().map(|s| Input::Remote(txn::Input::Disconnected(s))));
        self.wakes.remove(&Place::Server(id));
    }

    pub fn recover(&mut self, id: NodeId) {
        if self.servers[&id].failed {
            self.note(|| format!("{id} recovers"));
            self.server(id).failed = false;
            self.wake(Place::Server(id), self.now);
        }
    }

    /// A server stands still, as if its process were stopped: what arrives waits, and is handled in one turn.
    pub fn stall(&mut self, id: NodeId, length_us: u64) {
        let until = Time(self.now.0 + length_us);
        let server = self.server(id);
        server.busy_until = server.busy_until.max(until);
        self.note(|| format!("{id} stands still until {until:?}"));
    }

    /// Arranges for a server to die by itself.
    pub fn arm(&mut self, id: NodeId, harm: Harm) {
        let server = self.server(id);
        match harm {
            Harm::Fuse(operations) => server.disk.set_fuse(Some(operations)),
            Harm::FailWrite(n) => server.disk.inner.fail_write(n),
            Harm::FailSync(n) => server.disk.inner.fail_sync(n),
            Harm::BeforeRelease => server.dies_before_release = true,
        }
    }

    // ---- rest ----

    /// The balance of an account as one server has it.
    pub fn balance(&self, server: NodeId, account: AccountId) -> Option<u64> {
        self.servers[&server].running.as_ref()?.shard.bank().balance(account)
    }

    /// Whether everything that was begun is finished, or what is not. Only servers that are up are asked.
    pub fn at_rest(&self) -> Result<(), String> {
        for (id, client) in &self.clients {
            if let Some(asked) = client.asked.values().find(|a| !a.is_answered()) {
                return Err(format!("K{id} waits for {:?}, has {:?}", asked.op, asked.outcomes));
            }
        }
        for server in self.servers.values().filter(|s| s.is_up()) {
            let Some(Running { shard, .. }) = &server.running else { continue };
            let all = self.checker.decided(self.options.topology.shard_of_server(server.id));
            if shard.bank().applied() != all {
                let (id, applied) = (server.id, shard.bank().applied());
                return Err(format!("P4: {id} has applied {applied} of {all} slots"));
            }
        }
        self.checker.at_rest()
    }
}
