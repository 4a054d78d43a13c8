//! The world: virtual time, the queue of what happens next, servers, coordinators, and the harm done to them.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{Limits, Timeouts, Topology};
use crate::drive;
use crate::paxos::Message;
use crate::shard::{self, Input};
use crate::sim::checker::{Checker, Observed};
use crate::sim::clients::{Asked, Client};
use crate::sim::clock::Clock;
use crate::sim::coverage::{Coverage, Seen};
use crate::sim::disk::{Doom, DoomedLog};
use crate::sim::network::{Network, Packet, Place, Weather};
use crate::sim::server::{Outbox, Running, Sent, Server};
use crate::sim::sights::{Before, Log};
use crate::sim::text;
use crate::sim::trace::{Trace, TraceHash, keep_recent};
use crate::storage::{Identity, Retention, Wal};
use crate::txn;
use crate::txn::message::{Refusal, Request, Response};
use crate::types::{AccountId, ClientId, NodeId, Session, Slot, Time, TxnId};
use crate::workload::SplitMix64;

/// How long a connection attempt waits for an answer.
const CONNECT_TIMEOUT_US: u64 = 300_000;
/// Turns in a row that a deadline in the past may bring about.
pub(super) const SPIN_LIMIT: u32 = 50;

/// Clients of servers are numbered from 1 on; this one's connection is gone, and answers to it go nowhere.
const NOBODY: ClientId = ClientId(u64::MAX - 1);
/// Things that may happen in one run. One that needs more goes in circles.
const EVENTS_LIMIT: u64 = 3_000_000;

#[derive(Clone, Debug)]
pub struct Options {
    pub topology: Topology,
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub seed: u64,
    pub weather: Weather,
    /// How long a sync takes.
    pub sync_us: (u64, u64),
    pub segment_bytes: u64,
    pub retention: Retention,
    /// Whether power cuts tear most of what was not synced, and the log into lines instead of sectors.
    pub lines: bool,
    /// Whether every clock starts at another time.
    pub odd_clocks: bool,
    pub trace: Trace,
}

pub(super) enum Event {
    Arrive { from: Place, to: Place, packet: Packet },
    Wake(Place),
    ConnectTimeout { owner: Place, server: NodeId, connection: ClientId },
}

/// A connection as its opener sees it.
pub(super) struct Connection {
    pub id: ClientId,
    pub open: bool,
}

pub struct World {
    pub options: Options,
    pub now: Time,
    pub rng: SplitMix64,
    pub network: Network,
    pub servers: BTreeMap<NodeId, Server>,
    pub clients: BTreeMap<u32, Client>,
    /// What coordinators that died had been asked.
    pub departed: Vec<(u32, Asked)>,
    /// Sessions that were opened for transfers that clients name.
    pub opened: Vec<Session>,
    pub checker: Checker,
    pub coverage: Coverage,
    pub hash: TraceHash,
    /// The log, if one is written; scripts take its lines away.
    pub log: Vec<String>,
    /// Whether heartbeats are logged.
    pub chatter: bool,
    queue: BTreeMap<(Time, u64), Event>,
    next_event: u64,
    events: u64,
    /// Counts what clients ask and are told: the order of their moments.
    pub(super) moment: u64,
    pub(super) wakes: BTreeMap<Place, Time>,
    /// Servers that recover a transaction at present.
    pub(super) recoverers: BTreeMap<TxnId, BTreeSet<NodeId>>,
    pub(super) connections: BTreeMap<(Place, NodeId), Connection>,
    /// Probes that were sent, so that the log can tell their answers from others.
    probes: BTreeSet<(ClientId, u64)>,
    next_connection: u64,
    pub(super) next_client: u32,
    pub(super) next_tag: u64,
}

impl World {
    /// Formats all disks and starts all servers.
    pub fn new(options: Options) -> World {
        let Options { topology, limits, weather, seed, segment_bytes, odd_clocks, .. } = options;
        let mut world = World {
            options,
            now: Time(0),
            rng: SplitMix64::new(seed),
            network: Network::new(weather),
            servers: BTreeMap::new(),
            clients: BTreeMap::new(),
            departed: Vec::new(),
            opened: Vec::new(),
            checker: Checker::new(topology, &limits),
            coverage: Coverage::default(),
            hash: TraceHash::default(),
            log: Vec::new(),
            chatter: false,
            queue: BTreeMap::new(),
            next_event: 0,
            events: 0,
            moment: 0,
            wakes: BTreeMap::new(),
            recoverers: BTreeMap::new(),
            connections: BTreeMap::new(),
            probes: BTreeSet::new(),
            next_connection: 1,
            next_client: 1,
            next_tag: 1,
        };
        for id in topology.servers() {
            let shown = if odd_clocks { world.rng.below(1 << 40) } else { 0 };
            let server = Server::new(id, Clock::new(Time(shown)));
            let incarnation = u128::from(id.0);
            let identity = Identity { cluster_id: 1, topology, server: id, incarnation, founder: true };
            Wal::format(server.disk.clone(), identity, segment_bytes).expect("S3: a new disk takes a log");
            world.servers.insert(id, server);
            world.start(id);
        }
        world
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        let text = |now: Time| format!("{:>9.3} {}", now.0 as f64 / 1000.0, line());
        match &self.options.trace {
            Trace::Off => {}
            Trace::Keep => self.log.push(text(self.now)),
            Trace::Tell(tell) => tell(&text(self.now)),
            Trace::Recent(lines) => keep_recent(lines, text(self.now)),
        }
    }

    pub(super) fn server(&mut self, id: NodeId) -> &mut Server {
        self.servers.get_mut(&id).expect("a server of this topology")
    }

    // ---- time ----

    pub(super) fn schedule(&mut self, at: Time, event: Event) {
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
        self.events += 1;
        assert!(self.events < EVENTS_LIMIT, "livelock: more than {EVENTS_LIMIT} things happened");
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

    /// What is on its way on a link waits there from now on, and what is sent.
    pub fn hold(&mut self, from: Place, to: Place) {
        self.network.hold(from, to);
        let parked = &mut self.network.parked;
        self.queue.retain(|_, event| match event {
            Event::Arrive { from: a, to: b, packet } if (*a, *b) == (from, to) => {
                parked.push((from, to, packet.clone()));
                false
            }
            _ => true,
        });
    }

    /// Lets everything go that was held back, in order; requests of the dead too.
    pub fn release(&mut self) {
        for (from, to, packet) in self.network.release() {
            let packet = match packet {
                Packet::Request(_, request) if !self.is_alive(from) => Packet::Late(request),
                packet => packet,
            };
            self.schedule(self.now, Event::Arrive { from, to, packet });
        }
    }

    /// The same, but of what servers say to each other nothing arrives that asks for anything to be accepted.
    pub fn release_heartbeats(&mut self) {
        self.network.parked.retain(|(.., packet)| matches!(packet, Packet::Peer(Message::Heartbeat(_))));
        self.release();
    }

    fn arrive(&mut self, from: Place, to: Place, packet: Packet) {
        let cable = |s: &Self, p| matches!(p, Place::Server(id) if s.servers[&id].failed);
        if self.network.swallows(from, to) || cable(self, from) || cable(self, to) {
            return;
        }
        self.hash.add(&(self.now, from, to, &packet));
        if !self.is_alive(to) {
            if let (Packet::Open(id), Place::Server(_)) = (&packet, to) {
                self.send(self.now, to, from, Packet::Reset(*id));
            }
            return;
        }
        match (packet, to, from) {
            (Packet::Peer(message), Place::Server(id), Place::Server(from)) => {
                self.see_message(id, &message);
                self.push(id, Input::Peer { from, message });
            }
            (Packet::Open(connection), Place::Server(id), _) => {
                self.server(id).clients.insert(connection, from);
                self.send(self.now, to, from, Packet::Opened(connection));
            }
            (Packet::Request(client, request), Place::Server(id), _) => {
                if self.servers[&id].clients.contains_key(&client) {
                    self.checker.arrived(id, client, &request);
                    self.push(id, Input::Request { client, request });
                } else {
                    self.send(self.now, to, from, Packet::Reset(client));
                }
            }
            (Packet::Late(request), Place::Server(id), _) => {
                self.push(id, Input::Request { client: NOBODY, request });
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

    pub(super) fn push(&mut self, id: NodeId, input: Input) {
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

    pub(super) fn disconnected(&mut self, owner: Place, server: NodeId) {
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
        if !self.options.trace.is_off() && matches!(request, Request::Probe { .. }) {
            self.probes.insert((connection, request.number()));
        }
    }

    pub(super) fn open_connection(&self, owner: Place, server: NodeId) -> Option<ClientId> {
        self.connections.get(&(owner, server)).filter(|c| c.open).map(|c| c.id)
    }

    /// The connections between two places break: what is on its way is lost, half a frame with it.
    pub fn break_link(&mut self, a: Place, b: Place) {
        let between = |from: &Place, to: &Place| (*from, *to) == (a, b) || (*from, *to) == (b, a);
        let before = self.queue.len();
        self.queue.retain(|_, event| match event {
            Event::Arrive { from, to, packet } if packet.is_payload() && between(from, to) => {
                packet.breaks_off();
                false
            }
            _ => true,
        });
        self.coverage.see_if(self.queue.len() < before, Seen::FrameBroken);
        for (owner, end) in [(a, b), (b, a)] {
            let Place::Server(server) = end else { continue };
            let Some(connection) = self.connections.get(&(owner, server)) else { continue };
            let packet = Packet::Close(connection.id);
            self.schedule(self.now, Event::Arrive { from: owner, to: end, packet });
            self.disconnected(owner, server);
        }
    }

    /// Delivers an old frame once more, if one was kept.
    pub fn haunt(&mut self) {
        if let Some((from, to, packet)) = self.network.keepsake(&mut self.rng, self.now) {
            self.note(|| format!("an old frame from {from} to {to} comes again"));
            self.schedule(self.now, Event::Arrive { from, to, packet });
        }
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
        let (clock, sync_us) = (server.clock, sync_us * server.disk_slowness);
        let local = clock.local(now);
        let Some(running) = &mut server.running else { return };
        let mut inputs = std::mem::take(&mut server.inbox);
        server.spinning = if inputs.is_empty() { server.spinning + 1 } else { 0 };
        if running.shard.next_deadline() <= local {
            inputs.push(Input::Timer { random });
        } else if inputs.is_empty() && !running.shard.has_backlog() && !running.wal.has_work() {
            server.spinning = 0;
            let at = clock.global(running.shard.next_deadline(), now);
            return self.wake(Place::Server(id), at);
        }
        if running.wal.has_work() {
            server.spinning = 0;
        }
        server.disk.inner.set_time(now.0);
        let before = Before::of(running, &server.disk);
        let mut outbox = Outbox::new(now, sync_us);
        let mut log = DoomedLog { wal: &mut running.wal, doom: server.overwriting, struck: false };
        let done = drive::turn(local, &mut running.shard, &mut log, inputs, &mut outbox);
        let loses = log.struck && done.is_ok() && server.overwriting == Doom::WriteIsLost;
        let struck = log.struck && done.is_err();
        let reads = server.disk.reads();
        let misled = server.misled;
        let ailing = server.ailment.is_some();
        let observed = Observed { restored: false, durable: done.is_ok(), misled, ailing };
        self.checker.observe(&running.shard, observed, |slot| running.value(slot));
        // S2: the next record says how far slots are decided, or what it brings may count for less than it is.
        let (said, decided) = (running.wal.decided(), running.shard.replica().decided());
        assert!(done.is_err() || said >= decided, "S2: the log of {id} says {said} of {decided}");
        // What was misread may have no effect, or only later, as the amount of a prepared transfer has.
        if misled && self.checker.is_wrong(&running.shard) {
            server.wrong_at.get_or_insert(running.shard.bank().applied());
        }
        if misled && running.shard.replica().is_leader() {
            // Out of bounds: it would tell clients what is wrong before anybody can have noticed.
            return self.crash(id);
        }
        let done = done.and_then(|()| running.wal.prepare_ahead().map(drop));
        let by_age = self.options.retention.audit_age.is_some() && random.is_multiple_of(16);
        let done = done.and_then(|()| {
            let oldest = running.wal.oldest_segment();
            if by_age {
                running.wal.retire_audit()?;
            }
            self.coverage.see_if(running.wal.oldest_segment() > oldest, Seen::RetiredByAge);
            Ok(())
        });

        if server.rejoining && running.shard.replica().membership().votes() {
            server.rejoining = false;
            self.coverage.see(Seen::Rejoined);
        }
        if server.healing && !running.shard.replica().is_repairing() {
            server.healing = false;
            self.coverage.see(Seen::Healed);
        }
        let dies = server.dies_before_release && outbox.syncs > 0;
        server.busy_until = outbox.at;
        let mut wake = clock.global(running.shard.next_deadline(), now);
        if running.shard.has_backlog() {
            wake = now;
        } else if running.wal.has_work() {
            // What is written ahead takes its time, in which messages come.
            wake = wake.min(Time(now.0 + (sync_us / 2).min(500)));
        }
        if wake > now {
            server.spinning = 0;
        }
        assert!(server.spinning < SPIN_LIMIT, "{id} spins: its deadline {wake:?} never moves at {now:?}");
        let wake = wake.max(outbox.at);
        let after = Log::of(&running.wal);
        self.see_turn(id, &before, &after, reads, &outbox, done.as_ref().err());
        for (at, syncs, sent) in outbox.sent {
            if !dies || syncs == 0 {
                self.dispatch(at, id, sent);
            }
        }
        if let Err(e) = done {
            assert!(e.kind() != std::io::ErrorKind::StorageFull, "S1: {id} stops for lack of space: {e}");
            self.note(|| format!("{id} stops: {e}"));
            if let Some(divergence) = drive::divergence(&e) {
                let topology = self.options.topology;
                let mut members = topology.servers_of(topology.shard_of_server(id));
                let others = members.any(|m| m != id && self.servers[&m].ever_misled);
                self.checker.stops(divergence, misled, others);
            }
            self.coverage.see_if(struck, Seen::DiedOverwriting);
            // Where damage is not found yet, a mark that goes back in time would hide it: S1 promises nothing then.
            if struck && self.servers[&id].ailment.is_none() { self.tear(id) } else { self.crash(id) }
        } else if loses {
            self.lose_write(id);
        } else if dies {
            self.coverage.see(Seen::DiedBeforeRelease);
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
                let server = self.server(id);
                let decided = server.running.as_ref().map_or(Slot::ZERO, |r| r.shard.replica().decided());
                server.told.note(id, decided, &message);
                self.checker.acceptances.acknowledged(id, &message);
                self.send(at, me, Place::Server(to), Packet::Peer(message));
            }
            Sent::Client(client, response) => {
                let Some(to) = self.servers[&id].clients.get(&client).copied() else { return };
                if let Some(running) = &self.servers[&id].running {
                    self.checker.replied(&running.shard, client, &response);
                }
                let busy = matches!(response, Response::Refused { why: Refusal::Busy, .. });
                self.coverage.see_if(busy, Seen::LeaderBusy);
                self.see_refusal(id, &response);
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
            Sent::Paxos(event) => {
                self.see_paxos(id, &event);
                self.note(|| format!("{id} {event:?}"));
            }
            Sent::Shard(event) => {
                self.see_shard(id, &event);
                if !matches!(event, shard::Event::Led { .. } | shard::Event::Applied { .. }) {
                    self.note(|| format!("{id} {event:?}"));
                }
            }
            Sent::Synced => self.note(|| format!("{id} synced")),
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
            if let Some(asked) = client.asked.values().find(|a| self.is_waiting(*id, a)) {
                return Err(format!("K{id} waits for {:?}, has {:?}", asked.op, asked.outcomes));
            }
        }
        for server in self.servers.values().filter(|s| s.is_up()) {
            let Some(Running { shard, .. }) = &server.running else { continue };
            if server.rejoining {
                return Err(format!("S3: {} is not let in again", server.id));
            }
            if server.busy_until.0 > self.now.0 + 500_000 {
                return Err(format!("{} stands still", server.id));
            }
            let all = self.checker.decided(self.options.topology.shard_of_server(server.id));
            if shard.bank().applied() != all {
                let (id, applied) = (server.id, shard.bank().applied());
                return Err(format!("P4: {id} has applied {applied} of {all} slots"));
            }
            if self.must_stop(server.id) {
                return Err(format!("P4: the state of {} is wrong, and it goes on", server.id));
            }
        }
        // Until somebody leads, nobody knows what votes there are, and what they will lock.
        let topology = self.options.topology;
        let led = |server: &Server| {
            let running = server.running.as_ref().filter(|_| server.is_up());
            running.is_some_and(|r| r.shard.replica().phase1_decided())
        };
        for shard in topology.shards() {
            if !topology.servers_of(shard).any(|id| led(&self.servers[&id])) {
                return Err(format!("nobody leads {shard}"));
            }
        }
        self.checker.at_rest()
    }
}
