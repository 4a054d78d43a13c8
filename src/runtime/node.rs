//! One server's event loop: poll, read, one turn of the core, write.
//!
//! A turn reads every ready socket up to a budget, steps what came in, and runs [`drive::turn`]. Orders come over a
//! channel beside it. The loop never blocks but in `poll` and in the one sync of a turn, and one bad connection is
//! closed and reported without touching the others.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError};
use mio::net::TcpListener;
use mio::{Events, Poll, Token, Waker};
use parking_lot::Mutex;

use crate::audit::{Listing, Replay};
use crate::codec::{Hello, Opener, kind};
use crate::drive::{self, Ports};
use crate::paxos::{self, Message};
use crate::runtime::clock::{Clock, until, uptime};
use crate::runtime::conns::{Conns, Context, Door, Item, Received, Role};
use crate::runtime::doorman::Doorman;
use crate::runtime::gates::Gates;
use crate::runtime::gateway::Gateway;
use crate::runtime::order::{Order, Report};
use crate::runtime::outlet::Refusals;
use crate::runtime::status::{Status, Won, lost};
use crate::runtime::turn::{Around, TurnLog};
use crate::shard::{self, Input, Shard};
use crate::storage::{CommitStats, Disk, Wal};
use crate::txn::{self, message};
use crate::types::{ClientId, NodeId, Slot, Time};

mod leaving;

use leaving::Leaving;

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
/// The second listener, where clients and other servers have one each.
const SECOND_LISTENER: Token = Token(2);
const FIRST_CONN: usize = 3;
/// No server ever has so many connections that these numbers meet.
const GATEWAY_FIRST_CONN: usize = 1 << 48;

/// How often log that has become too old is looked for.
const RETIRE_EVERY: Duration = Duration::from_secs(3600);

/// Transactions that a report lists at most: what one frame holds, and no server need keep in memory.
const LISTED_AT_MOST: usize = 500_000;

/// Faults of its disk that a server names at most, each once.
const NAMED_AT_MOST: usize = 1000;

/// What comes over the control channel of a server thread.
pub enum Control {
    Order(Order, Sender<Report>),
    /// Stop in good order, see [`leaving`].
    Leave,
    /// Leave the loop at once, as if the process were killed: nothing is flushed or said to anybody.
    Stop,
}

/// Everything a server's loop owns when it starts.
pub struct Setup<D: Disk> {
    pub context: Context,
    pub shard: Shard,
    pub wal: Wal<D>,
    pub clock: Clock,
    pub poll: Poll,
    pub waker: Arc<Waker>,
    /// Where it listens, for whom; two at most.
    pub doors: Vec<(TcpListener, Door)>,
    /// Connections of clients and operators at most.
    pub connections: u32,
    pub control: Receiver<Control>,
    pub status: Arc<Mutex<Status>>,
    /// Whether operators may give orders over the wire.
    pub admin: bool,
}

/// Creates the poll of a server together with the waker of its control channel.
pub fn poll_and_waker() -> io::Result<(Poll, Arc<Waker>)> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKER)?;
    Ok((poll, Arc::new(waker)))
}

/// Where the answer to an order goes.
enum ReplyTo {
    Channel(Sender<Report>),
    Connection(usize),
}

struct Node<D: Disk> {
    me: NodeId,
    peers: Vec<NodeId>,
    opener: Opener,
    shard: Shard,
    wal: Wal<D>,
    conns: Conns,
    gateway: Gateway,
    clock: Clock,
    gates: Gates,
    turned_away: Refusals,
    doorman: Doorman,
    retire_at: Time,
    control: Receiver<Control>,
    status: Arc<Mutex<Status>>,
    failed: bool,
    leaving: Option<Leaving>,
    awaiting: Vec<(Slot, ReplyTo)>,
    replays: Vec<(Replay, Listing, ReplyTo)>,
    turn: TurnLog,
    /// The highest slot up to which a leader said that all is decided.
    told: Slot,
    /// What was found damaged since it started.
    damage: BTreeSet<String>,
    /// Servers of other clusters that a request could not be sent to; the core hears of it in the next turn.
    lost: Vec<NodeId>,
}

/// Runs a server until it is stopped. An error means that it stopped for good: its disk failed, or its state differs
/// from that of others.
pub fn run<D: Disk>(setup: Setup<D>) -> io::Result<()> {
    let Setup { context, shard, wal, clock, mut poll, waker, doors, connections, control, status, admin } =
        setup;
    let gates = Gates::open(poll.registry(), [LISTENER, SECOND_LISTENER], doors, clock.now())?;
    let me = shard.id();
    let topology = context.topology;
    let incarnation = wal.identity().incarnation;
    let mut node = Node {
        me,
        peers: topology.servers_of(topology.shard_of_server(me)).filter(|s| *s != me).collect(),
        opener: Opener::Peer { server: me, incarnation, process: rand::random() },
        gateway: Gateway::new(
            Conns::new(context.clone(), poll.registry().try_clone()?, waker.clone(), GATEWAY_FIRST_CONN),
            topology,
            context.timeouts,
            clock.now(),
        ),
        conns: Conns::new(context, poll.registry().try_clone()?, waker, FIRST_CONN),
        shard,
        wal,
        clock,
        gates,
        turned_away: Refusals::default(),
        doorman: Doorman::new(me, admin),
        retire_at: clock.now() + RETIRE_EVERY,
        control,
        status,
        failed: false,
        leaving: None,
        awaiting: Vec::new(),
        replays: Vec::new(),
        turn: TurnLog::default(),
        told: Slot::ZERO,
        damage: BTreeSet::new(),
        lost: Vec::new(),
    };
    node.conns.admit_at_most(connections as usize);
    let result = node.run(&mut poll);
    if let Err(e) = &result {
        match drive::divergence(e) {
            Some(divergence) => {
                log::error!("{me} stops for good: {divergence}");
                node.status.lock().metrics.counts.digest_mismatches += 1;
            }
            None => log::error!("{me} stops for good, its disk failed: {e}"),
        }
        node.status.lock().stopped = Some(e.to_string());
    }
    result
}

impl<D: Disk> Node<D> {
    fn run(&mut self, poll: &mut Poll) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        let mut received: Vec<Item> = Vec::new();
        let mut inputs: Vec<Input> = Vec::new();
        loop {
            let timeout = self.timeout();
            if let Err(e) = poll.poll(&mut events, Some(timeout))
                && e.kind() != io::ErrorKind::Interrupted
            {
                return Err(e);
            }
            let now = self.clock.now();
            for event in &events {
                match event.token() {
                    WAKER => {}
                    token @ (LISTENER | SECOND_LISTENER) => self.gates.knock(token, now),
                    Token(token) if token >= GATEWAY_FIRST_CONN => self.gateway.wake(event),
                    _ => self.conns.wake(event),
                }
            }
            self.gates.accept(self.me, now, &mut self.conns, &mut received);
            self.conns.receive(now, &mut received);
            self.conns.expire_strangers(now, &mut received);
            self.conns.tend(now);
            for item in std::mem::take(&mut received) {
                self.take(now, item, &mut inputs);
            }
            if !self.obey(now, &mut inputs) {
                return Ok(());
            }
            if self.failed {
                inputs.clear();
            } else {
                for token in self.gateway.turn(now, &mut self.conns) {
                    self.conns.leave(token, "it asked for that", &mut received);
                }
                self.conns.give_up_silent(now, &self.peers, &mut received);
                self.turn(now, &mut inputs)?;
            }
            self.finish_turn(now)?;
            self.conns.flush(&mut received);
            if self.may_stop(now, &mut received) {
                log::info!("{} stops", self.me);
                return Ok(());
            }
        }
    }

    fn timeout(&self) -> Duration {
        let now = self.clock.now();
        let work = self.shard.has_backlog() || self.wal.has_work() || !self.lost.is_empty();
        let backlog = !self.failed && (work || self.gateway.has_more());
        if backlog || !self.replays.is_empty() || self.conns.has_more() {
            return Duration::ZERO;
        }
        let shard = (!self.failed).then(|| self.shard.next_deadline());
        let redial = if self.failed { None } else { self.conns.redial_due(&self.peers) };
        let gateway = if self.failed { None } else { self.gateway.next_deadline() };
        let deadline = [shard, redial, gateway, self.gates.due()].into_iter().flatten().min();
        // Woken for anything else by the waker or a socket.
        let idle = Duration::from_millis(if self.leaving.is_some() { 10 } else { 1_000 });
        deadline.map_or(idle, |d| until(now, d)).min(idle)
    }

    /// Runs one turn of the core on what came in.
    fn turn(&mut self, now: Time, inputs: &mut Vec<Input>) -> io::Result<()> {
        self.conns.dial_resolved(now);
        for peer in self.peers.clone() {
            self.conns.dial(now, peer, self.opener);
        }
        if self.shard.next_deadline() <= now {
            inputs.push(Input::Timer { random: rand::random() });
        }
        let lost = std::mem::take(&mut self.lost).into_iter();
        inputs.extend(lost.map(|s| Input::Remote(txn::Input::Disconnected(s))));
        let mut ports = NodePorts {
            now,
            opener: self.opener,
            conns: &mut self.conns,
            turn: &mut self.turn,
            lost: &mut self.lost,
            me: self.me,
            flushed: Instant::now(),
        };
        drive::turn(now, &mut self.shard, &mut self.wal, inputs.drain(..), &mut ports)?;
        if self.retire_at <= now {
            self.retire_at = now + RETIRE_EVERY;
            self.wal.retire_audit()?;
        }
        self.wal.prepare_ahead().map(drop)
    }

    // ---- connections ----

    fn take(&mut self, now: Time, item: Item, inputs: &mut Vec<Input>) {
        let Item { token, role, received } = item;
        match received {
            Received::Hello(hello) => return self.greet(now, token, hello),
            Received::Order(order) => return self.order(now, order, ReplyTo::Connection(token), inputs),
            Received::Closed => {
                match role {
                    Role::Resp => self.gateway.left(token),
                    Role::Peer(from) => self.doorman.loses(from, token),
                    Role::Client => inputs.push(Input::ClientGone(ClientId(token as u64))),
                    Role::Dialled(server) if !self.peers.contains(&server) => {
                        inputs.push(Input::Remote(txn::Input::Disconnected(server)));
                    }
                    _ => {}
                }
                return;
            }
            Received::Established(server) if self.peers.contains(&server) => return,
            Received::Established(server) => {
                inputs.push(Input::Remote(txn::Input::Connected(server)));
            }
            Received::Reject(why) => {
                let Role::Dialled(from) = role else { return };
                if self.turned_away.is_news(from, &why) {
                    log::error!("{}: {why}", self.me);
                }
                return;
            }
            Received::Peer(message) => {
                let Role::Peer(from) = role else { return };
                self.doorman.hears(from, now);
                self.told = message.decided().map_or(self.told, |decided| decided.max(self.told));
                inputs.push(Input::Peer { from, message });
            }
            Received::Request(request) => {
                inputs.push(Input::Request { client: ClientId(token as u64), request });
            }
            Received::Response(response) => {
                let Role::Dialled(from) = role else { return };
                inputs.push(Input::Remote(txn::Input::Response { from, response }));
            }
            Received::Resp(_) if self.failed => {
                return self.conns.close(token, "the cable is pulled", &mut Vec::new());
            }
            Received::Resp(request) => self.gateway.request(now, token, request, &self.shard),
            Received::Report(_) => return,
        }
        self.turn.messages_in += 1;
    }

    fn greet(&mut self, now: Time, token: usize, hello: Hello) {
        let door = self.conns.door(token);
        let role = match self.doorman.admit(now, &self.conns.context, (token, door), &hello) {
            Ok(role) => role,
            Err(why) => {
                log::warn!("{}: {} is turned away: {why}", self.me, self.conns.name(token));
                self.conns.send(token, kind::REJECT, &format!("{} turned it away: {why}", self.me));
                return self.conns.leave(token, &why, &mut Vec::new());
            }
        };
        if self.failed && role != Role::Admin {
            return self.conns.close(token, "the cable is pulled", &mut Vec::new());
        }
        self.conns.greet(token, role);
    }

    // ---- orders ----

    /// Carries out what the control channel holds; `false` to stop.
    fn obey(&mut self, now: Time, inputs: &mut Vec<Input>) -> bool {
        loop {
            match self.control.try_recv() {
                Ok(Control::Order(order, reply)) => self.order(now, order, ReplyTo::Channel(reply), inputs),
                Ok(Control::Leave) => self.begin_to_leave(now, inputs),
                Err(TryRecvError::Empty) => return true,
                // Whoever held the other end is gone, and with it the reason to run.
                Ok(Control::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn order(&mut self, now: Time, order: Order, reply: ReplyTo, inputs: &mut Vec<Input>) {
        let report = match order {
            Order::Fail => {
                if !self.failed {
                    log::info!("{} fails: its cable is pulled", self.me);
                    self.failed = true;
                    // The core hears of it when the cable is back: until then it stands still.
                    self.conns.close_all(&mut Vec::new());
                    self.gateway.cut_off(now);
                    inputs.clear();
                }
                Report::Done
            }
            Order::Recover => {
                if self.failed {
                    log::info!("{} recovers", self.me);
                    self.failed = false;
                    inputs.push(Input::Resume);
                }
                Report::Done
            }
            Order::Balances(accounts) => {
                Report::Balances(accounts.into_iter().map(|a| self.shard.bank().balance(a)).collect())
            }
            Order::AwaitApplied(slot) => return self.awaiting.push((slot, reply)),
            Order::Log => {
                let replay = Replay::new(&self.wal, self.shard.bank().applied());
                return self.replays.push((replay, Listing::default(), reply));
            }
            Order::Status => {
                self.publish(now);
                Report::Status(Box::new(self.status.lock().clone()))
            }
        };
        self.report(reply, report);
    }

    fn report(&mut self, reply: ReplyTo, report: Report) {
        match reply {
            // Nobody may be waiting any more; then nobody misses it.
            ReplyTo::Channel(channel) => _ = channel.send(report),
            ReplyTo::Connection(token) => _ = self.conns.send(token, kind::REPORT, &report),
        }
    }

    // ---- after the turn ----

    fn finish_turn(&mut self, now: Time) -> io::Result<()> {
        let applied = self.shard.bank().applied();
        let reached: Vec<_> = self.awaiting.extract_if(.., |(slot, _)| *slot <= applied).collect();
        for (_, reply) in reached {
            self.report(reply, Report::Done);
        }
        if !self.shard.replica().has_room() {
            // Nobody knows when there will be.
            for (_, reply) in std::mem::take(&mut self.awaiting) {
                self.report(reply, Report::Behind { applied });
            }
        }
        if let Some((replay, listing, _)) = self.replays.first_mut() {
            let report = match replay.advance(&self.wal, &self.shard) {
                Ok((part, _)) if listing.committed.len() + part.committed.len() > LISTED_AT_MOST => {
                    Some(Report::Failed(format!(
                        "{}: its log has more than {LISTED_AT_MOST} transactions; list them where its directory is, with \
                         `bank log DIR`",
                        self.me
                    )))
                }
                Ok((part, last)) => {
                    listing.append(part);
                    last.then(|| Report::Log(std::mem::take(listing)))
                }
                // What is damaged here is no part of what this server stands on; what is, it notices itself.
                Err(e) => {
                    self.turn.damage.push(e.what());
                    Some(Report::Failed(format!("{}: {}", self.me, e.what())))
                }
            };
            if let Some(report) = report {
                let (_, _, reply) = self.replays.remove(0);
                self.report(reply, report);
            }
        }
        self.publish(now);
        Ok(())
    }

    fn publish(&mut self, now: Time) {
        let mut turn = std::mem::take(&mut self.turn);
        // Each campaign, and each reading, finds the same again.
        turn.damage.extend(turn.lost.take());
        turn.damage.retain(|what| self.damage.len() < NAMED_AT_MOST && self.damage.insert(what.clone()));
        turn.damage.iter().for_each(|what| log::error!("{}: {what}", self.me));
        let ((bytes_in, bytes_out), (own_in, own_out)) = (self.conns.bytes(), self.gateway.bytes());
        let around = Around {
            uptime: uptime(self.clock.now()),
            failed: self.failed,
            leaving: self.leaving.is_some(),
            told: self.told,
            bytes: (bytes_in + own_in, bytes_out + own_out),
            dropped: self.conns.dropped,
            served: self.gateway.served(),
        };
        turn.publish(now, &self.shard, &self.wal, around, &self.status);
    }
}

/// The core's way out of one turn.
struct NodePorts<'a> {
    now: Time,
    me: NodeId,
    opener: Opener,
    conns: &'a mut Conns,
    turn: &'a mut TurnLog,
    lost: &'a mut Vec<NodeId>,
    flushed: Instant,
}

impl Ports for NodePorts<'_> {
    fn peer(&mut self, to: NodeId, message: &Message) {
        if let Some(token) = self.conns.dial(self.now, to, self.opener)
            && self.conns.send(token, kind::PEER, message)
        {
            self.turn.messages_out += 1;
        }
    }

    fn client(&mut self, to: ClientId, response: message::Response) {
        if self.conns.send(to.0 as usize, kind::RESPONSE, &response) {
            self.turn.messages_out += 1;
        }
    }

    fn remote(&mut self, to: NodeId, request: message::Request) {
        let sent = self.conns.dialled(to).is_some_and(|t| self.conns.send(t, kind::REQUEST, &request));
        if sent {
            self.turn.messages_out += 1;
        } else {
            self.lost.push(to);
        }
    }

    fn connect(&mut self, to: NodeId) {
        self.conns.dial(self.now, to, Opener::Client);
    }

    fn flush(&mut self) {
        // What breaks here is found broken again, and reported, by the flush at the end of the loop.
        self.conns.flush_quietly();
        self.flushed = Instant::now();
    }

    fn synced(&mut self, stats: &CommitStats) {
        self.turn.commits.push(self.flushed.elapsed());
        self.turn.wal_bytes += stats.bytes;
    }

    fn paxos_event(&mut self, event: paxos::Event) {
        use paxos::Event::*;
        self.turn.count_paxos(&event);
        match &event {
            Leading { ballot, decided, phase1_end } => {
                log::info!(
                    "{} leads in ballot {ballot}, {} slots proposed again",
                    self.me,
                    phase1_end.0 - decided.0
                );
                self.turn.won.push(Won {
                    ballot: *ballot,
                    at_us: uptime(self.now).as_micros() as u64,
                    reproposed: phase1_end.0 - decided.0,
                });
            }
            LostLeadership { ballot, why } => {
                log::info!("{} leads no more in ballot {ballot}: {why}", self.me)
            }
            SpaceShort { room } => log::warn!(
                "{}: the disk is full; {room} bytes still fit into the log, and near its end new work is refused",
                self.me
            ),
            SpaceBack => log::info!("{}: the disk has space again", self.me),
            Mended => log::info!("{}: what damage took from its log is made good", self.me),
            Rewritten { slot } => {
                log::info!(
                    "{}: the value of slot {slot} came from another server and is written again",
                    self.me
                )
            }
            Lost { slots, decided } => self.turn.lost = Some(lost(slots, *decided)),
            Ignored { from, what } => log::warn!("{}: {what} from {from} is ignored", self.me),
            _ => log::debug!("{}: {event:?}", self.me),
        }
    }

    fn shard_event(&mut self, event: shard::Event) {
        use shard::Event::*;
        self.turn.count_shard(&event);
        match &event {
            Led { transactions, latency, .. } => self.turn.led.push((*transactions, *latency)),
            Applied { .. } => {}
            TooSlow => {
                log::warn!("{} is too slow to lead, and would leave the lead to another server", self.me)
            }
            Recovering { id } => log::info!("{} finishes {id}, which is in doubt for too long", self.me),
            SnapshotBegun { from, slot } => {
                log::info!("{} lags: {from} sends it the snapshot of slot {slot}", self.me)
            }
            SnapshotInstalled { slot } => log::info!("{} goes on from the snapshot of slot {slot}", self.me),
            SnapshotRefused { from, slot, why } => {
                log::error!("{}: the snapshot of slot {slot} that {from} sent is refused: {why}", self.me)
            }
            SnapshotDamaged { slot, why } => {
                log::warn!("{}: the snapshot of slot {slot} cannot be sent: {why}", self.me);
                self.turn.damage.push(why.clone());
            }
            LogDamaged { slot, why } => {
                log::debug!("{}: slot {slot} cannot be read back: {why}", self.me);
                self.turn.damage.push(format!("slot {slot} is decided and cannot be read back (S2): {why}"));
            }
            DigestsDiffer { slot } => {
                log::warn!(
                    "{}: others have another state after slot {slot}; it waits for a majority",
                    self.me
                )
            }
            Malformed { client, what } => {
                log::warn!("{}: {client} sent a malformed request: {what}", self.me)
            }
            _ => log::debug!("{}: {event:?}", self.me),
        }
    }
}
