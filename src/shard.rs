//! One server's pure core: the replica, the bank it feeds, the clients that wait, and recovery (T4).
//!
//! Everything comes in through [`Shard::step`] and goes out through [`Output`]; [`crate::drive`] says in which order a
//! driver acts on it. The step function is infallible: stale or nonsensical input becomes an event and nothing else,
//! a broken invariant panics.
//!
//! Deliberately absent: sockets, files, clocks, threads and random numbers.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};

use crate::bank::command::{self, Range};
use crate::bank::{Bank, Effects};
use crate::config::{Limits, Timeouts, Topology, limits};
use crate::paxos::{Message, Replica, Standing};
use crate::txn::message::{Refusal, Request, Response};
use crate::txn::{self, Coordinator};
use crate::types::{Ballot, ClientId, Cut, NodeId, Reason, ShardId, Slot, Time, TxnId, Value};

mod admission;
mod catch_up;
mod cuts;
mod digests;
mod doubts;
mod history;
mod idle;
mod io;
mod late;
mod learners;
mod reads;
mod recovery;
mod space;

pub use catch_up::ReadPiece;
use catch_up::Transfer;
pub use cuts::Cuts;
pub use io::{Event, Input, Output};

use digests::Comparison;
pub use digests::Divergence;
use doubts::Doubts;
pub use history::{History, Run};
use idle::Idle;
use late::Lateness;
use reads::{Pending, Question};

/// The client under whose name this server's own recoverer asks its own shard. Drivers number clients from 1.
const MYSELF: ClientId = ClientId(0);

/// A request that waits for its place in a slot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Queued {
    client: ClientId,
    request: u64,
    blocks: Value,
    size: command::Size,
}

/// Buffers that are filled anew for each slot, and kept so that they need not grow again. They are no part of the state.
#[derive(Default, Debug)]
struct Scratch(Effects);

impl Clone for Scratch {
    fn clone(&self) -> Scratch {
        Scratch::default()
    }
}

impl PartialEq for Scratch {
    fn eq(&self, _: &Scratch) -> bool {
        true
    }
}

impl Eq for Scratch {}

impl Hash for Scratch {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// A slot in flight that this leader proposed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Batch {
    proposed: Time,
    /// (client, request, number of blocks), in the order of the blocks.
    waiting: Vec<(ClientId, u64, usize)>,
}

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Shard {
    me: NodeId,
    shard: ShardId,
    topology: Topology,
    timeouts: Timeouts,
    limits: Limits,
    replica: Replica,
    bank: Bank,
    scratch: Scratch,
    comparison: Comparison,
    /// The ballot in which the tables below were filled; they end with it.
    leading: Option<Ballot>,
    queue: VecDeque<Queued>,
    queue_bytes: usize,
    pending: BTreeMap<Slot, Batch>,
    reads: Vec<Pending>,
    /// When to finish each undecided YES that this leader holds.
    doubts: Doubts,
    idle: Idle,
    recoverer: Coordinator,
    random: u64,
    history: History,
    cuts: Cuts,
    snapshot_saved: Option<Cut>,
    /// A snapshot that another server sends.
    transfer: Option<Transfer>,
    /// When this leader last proposed to let a server in again (S3).
    let_in: BTreeMap<NodeId, Time>,
    /// Before this no snapshot is asked for: there was no space for the last one.
    no_transfer_before: Time,
    /// One that is complete, and not durable yet.
    installing: Option<Bank>,
    lateness: Lateness,
    /// It is about to stop.
    leaving: bool,
}

impl Shard {
    /// Puts a server together from what its disk gave back: a replica, and the bank up to the decided slot.
    pub fn new(
        me: NodeId,
        topology: Topology,
        timeouts: Timeouts,
        now: Time,
        replica: Replica,
        bank: Bank,
    ) -> Shard {
        assert_eq!(bank.applied(), replica.decided(), "P4: a restart applies everything decided");
        let mut recoverer = Coordinator::recoverer(topology, timeouts, now);
        recoverer.step(now, txn::Input::Connected(me), &mut txn::Output::default());
        let shard = topology.shard_of_server(me);
        let (servers, applied) = (topology.servers_of(shard).collect(), bank.applied());
        Shard {
            me,
            shard,
            topology,
            timeouts,
            limits: Limits::default(),
            replica,
            bank,
            scratch: Scratch::default(),
            comparison: Comparison::new(me, servers, &timeouts, limits::DIGEST_SLOTS),
            leading: None,
            queue: VecDeque::new(),
            queue_bytes: 0,
            pending: BTreeMap::new(),
            reads: Vec::new(),
            doubts: Doubts::default(),
            idle: Idle::default(),
            recoverer,
            random: u64::from(me.0),
            history: History::new(applied, limits::DIGEST_SLOTS),
            cuts: Cuts::new(&Limits::default()),
            snapshot_saved: None,
            transfer: None,
            let_in: BTreeMap::new(),
            no_transfer_before: Time::default(),
            installing: None,
            lateness: Lateness::default(),
            leaving: false,
        }
    }

    /// The same with the newest snapshot on its disk, and what was gathered from the log behind it.
    pub fn with_log(self, snapshot_saved: Option<Cut>, cuts: Cuts, history: History) -> Shard {
        Shard { snapshot_saved, cuts, history, ..self }
    }

    /// What is known of committed transactions and not in the log yet.
    pub fn unwritten_history(&self) -> impl Iterator<Item = Run> + '_ {
        self.history.unwritten(self.bank.applied())
    }

    /// Whether a snapshot that another server sent is complete, and not durable yet.
    pub fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    /// The newest snapshot that is known to be durable.
    pub fn snapshot_saved(&self) -> Option<Cut> {
        self.snapshot_saved
    }

    /// The same with other bounds than the usual ones; the bank has its own.
    pub fn with_limits(self, limits: Limits) -> Shard {
        let replica = self.replica.with_limits(limits);
        let recoverer = self.recoverer.with_limits(limits);
        let comparison = self.comparison.with_every(limits.digest_slots);
        Shard { limits, replica, recoverer, comparison, ..self }
    }

    pub fn id(&self) -> NodeId {
        self.me
    }

    pub fn shard(&self) -> ShardId {
        self.shard
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    pub fn bank(&self) -> &Bank {
        &self.bank
    }

    /// The last agreed slot at which a majority had the same digest as this server, and that digest (P4).
    pub fn confirmed_digest(&self) -> Option<(Slot, u64)> {
        self.comparison.confirmed()
    }

    /// Tells what the digest was after a slot that was applied before this server started; before the first step.
    pub fn remember_digest(&mut self, slot: Slot, digest: u64) {
        self.comparison.applied(slot, digest);
    }

    /// Whether requests wait that a following turn could take up at once.
    pub fn has_backlog(&self) -> bool {
        !self.queue.is_empty() && self.replica.can_propose()
    }

    /// When [`Input::Timer`] is wanted.
    pub fn next_deadline(&self) -> Time {
        let doubts = self.doubts.next_deadline();
        let reads = self.reads.iter().map(|r| r.deadline).min();
        let recovery = self.recoverer.next_deadline();
        let (digests, idle) = (self.comparison.next_deadline(), self.idle.next_look());
        let mine = [doubts, reads, recovery, digests, idle, self.lateness.next_deadline()];
        mine.into_iter().flatten().fold(self.replica.next_deadline(), Time::min)
    }

    /// The single entry point.
    pub fn step(&mut self, now: Time, input: Input, out: &mut Output) {
        let turn_ends = input == Input::TurnEnd;
        match input {
            Input::Peer { from, message } => {
                if let Message::Digests(digests) = &message {
                    self.comparison.hear(from, digests, out);
                }
                if let Message::Learner(learner) = &message {
                    self.on_learner(now, from, learner);
                }
                if let Some(message) = self.snapshot_message(now, from, message, out) {
                    self.replica.message(now, from, message, &mut out.paxos);
                }
            }
            Input::Request { client, request } => self.request(now, client, request, out),
            Input::ClientGone(client) => self.forget(client),
            Input::LogRead { purpose, first, entries } => {
                self.replica.log_read(now, purpose, first, entries, &mut out.paxos);
            }
            Input::LogUnreadable { purpose, slot } => {
                self.replica.log_unreadable(now, purpose, slot, &mut out.paxos);
            }
            Input::Remote(input) => self.recovery_step(now, input, out),
            Input::Timer { random } => {
                self.random = random;
                self.judge_lateness(now, out);
                if self.replica.next_deadline() <= now {
                    self.replica.timer(now, random, &mut out.paxos);
                }
            }
            Input::Room(room) => {
                self.history.secure();
                self.replica.set_room(now, room, &mut out.paxos);
            }
            Input::Snapshot(cut) => self.on_snapshot(now, cut, out),
            Input::SnapshotLost => self.on_snapshot_lost(now),
            Input::PieceRead { read, bytes } => self.send_piece(read, bytes, out),
            Input::Leave => self.leaving = true,
            Input::Resume => {
                self.comparison.resume();
                self.replica.resume(now, &mut out.paxos);
            }
            Input::TurnEnd => {
                self.recover_doubts(now, out);
                self.retire_sessions(now, out);
                self.recovery_step(now, txn::Input::TurnEnd, out);
                self.refuse_for_space(now, out);
                self.propose_queue(now, out);
                self.leave_lead(now, out);
                self.begin_reads(out);
                self.replica.turn_end(now, &mut out.paxos);
                self.lateness.watch(now, !self.pending.is_empty(), &self.timeouts);
                if self.installing.is_some() {
                    // It is being written; a campaign's clock stands still meanwhile.
                    self.replica.catching_up(now);
                }
                let confirmed = self.comparison.confirmed().map_or(Slot::ZERO, |(slot, _)| slot);
                if !out.paxos.records.is_empty() || self.cuts.waits() {
                    let room = self.replica.room_for_history(&out.paxos);
                    self.history.write(confirmed, room, &mut out.paxos.records);
                }
            }
        }
        self.offer_snapshots(out);
        self.follow_leadership(now, out);
        self.apply_decided(now, out);
        if turn_ends {
            self.comparison.turn_end(now, out);
            self.begin_snapshot(out);
            // Once a turn: thousands of reads may wait.
            self.answer_reads(now, out);
            if out.stop.is_some() {
                out.replies.clear();
                out.remote.clear();
            }
        }
    }

    // ---- clients ----

    fn request(&mut self, now: Time, client: ClientId, request: Request, out: &mut Output) {
        let number = request.number();
        let refuse = |why| (client, Response::Refused { request: number, why });
        // P4: nobody is told anything of a state that others contradict. Who leads is no such thing.
        if self.comparison.is_silent() && !matches!(request, Request::Probe { .. }) {
            out.replies.push(refuse(Refusal::Busy));
            return;
        }
        if let Request::Read { account, local: true, .. } = request {
            let balance = self.bank.balance(account).ok_or(Reason::UnknownAccount);
            out.replies.push((client, Response::Balance { request: number, balance }));
            return;
        }
        let mut standing = self.replica.standing(now);
        if self.leaves(now).is_some() {
            let leader = if let Standing::Following(leader) = standing { Some(leader) } else { None };
            return out.replies.push(refuse(Refusal::NotLeader(leader)));
        }
        let campaign = !matches!(request, Request::Probe { campaign: false, .. });
        if campaign && matches!(standing, Standing::Searching) {
            self.replica.campaign_if_leaderless(now, &mut out.paxos);
            standing = self.replica.standing(now);
        }
        let refusal = match standing {
            Standing::Leading => None,
            Standing::Following(leader) => Some(Refusal::NotLeader(Some(leader))),
            Standing::Searching => Some(Refusal::NotLeader(None)),
            Standing::NoQuorum => Some(Refusal::NoQuorum),
        };
        if let Some(why) = refusal {
            out.replies.push(refuse(why));
            return;
        }
        let question = match request {
            Request::Submit { blocks, .. } => {
                if let Err(why) = self.enqueue(client, number, blocks) {
                    if let Refusal::Malformed(what) = &why {
                        out.events.push(Event::Malformed { client, what: what.clone() });
                    }
                    out.replies.push(refuse(why));
                }
                return;
            }
            Request::Read { account, .. } => Question::Balance(account),
            Request::Status { id, .. } => Question::Status(id),
            Request::Probe { .. } => Question::Leading,
        };
        if let Err(why) = self.take_question(now, client, number, question) {
            out.replies.push(refuse(why));
        }
    }

    fn enqueue(&mut self, client: ClientId, request: u64, blocks: Value) -> Result<(), Refusal> {
        if blocks.len() > limits::VALUE_BYTES {
            let what = format!("{} bytes of blocks, a slot holds {}", blocks.len(), limits::VALUE_BYTES);
            return Err(Refusal::Malformed(what));
        }
        let size = self.check(&blocks).map_err(Refusal::Malformed)?;
        if self.queue_bytes + blocks.len() > self.limits.queue_bytes {
            return Err(Refusal::Busy);
        }
        self.queue_bytes += blocks.len();
        self.queue.push_back(Queued { client, request, blocks, size });
        Ok(())
    }

    fn forget(&mut self, client: ClientId) {
        self.reads.retain(|r| r.client != client);
        for batch in self.pending.values_mut() {
            // The blocks stay in the slot, so their places must stay as well.
            batch.waiting.iter_mut().filter(|w| w.0 == client).for_each(|w| w.0 = ClientId(u64::MAX));
        }
        let before = self.queue.len();
        self.queue.retain(|q| q.client != client);
        if self.queue.len() != before {
            self.queue_bytes = self.queue.iter().map(|q| q.blocks.len()).sum();
        }
    }

    fn reply(&mut self, now: Time, client: ClientId, response: Response, out: &mut Output) {
        if client == MYSELF {
            let input = txn::Input::Response { from: self.me, response };
            self.recovery_step(now, input, out);
        } else if client != ClientId(u64::MAX) {
            out.replies.push((client, response));
        }
    }

    // ---- the leader's turn ----

    /// Turns what waits into slots: as much in each as it holds, and no more slots than the window allows.
    fn propose_queue(&mut self, now: Time, out: &mut Output) {
        while !self.queue.is_empty() && self.replica.can_propose() {
            let mut bytes = Vec::new();
            let mut waiting = Vec::new();
            let mut single = None;
            let mut sequences = 0;
            while let Some(next) = self.queue.front() {
                sequences += next.size.sequences;
                let long = sequences > command::MAX_SEQUENCES;
                let full = long || bytes.len() + next.blocks.len() > self.limits.batch_bytes;
                if full && !waiting.is_empty() {
                    break;
                }
                let next = self.queue.pop_front().expect("the front was just read");
                self.queue_bytes -= next.blocks.len();
                waiting.push((next.client, next.request, next.size.blocks));
                bytes.extend_from_slice(&next.blocks.0);
                single = Some(next.blocks);
            }
            let value = match single {
                // One request is a batch as it is.
                Some(blocks) if waiting.len() == 1 => blocks,
                _ => Value::from_slice(&bytes),
            };
            let slot = self.replica.propose(value, &mut out.paxos);
            self.pending.insert(slot, Batch { proposed: now, waiting });
        }
    }

    /// Fills the tables of a new leader, and answers everybody who waited for one that leads no more.
    fn follow_leadership(&mut self, now: Time, out: &mut Output) {
        let leading = self.replica.is_leader().then(|| self.replica.promised());
        if leading == self.leading {
            return;
        }
        if self.leading.is_some() {
            let why = match self.replica.standing(now) {
                Standing::NoQuorum => Refusal::NoQuorum,
                Standing::Following(leader) => Refusal::NotLeader(Some(leader)),
                _ => Refusal::NotLeader(None),
            };
            self.leading = leading;
            self.queue_bytes = 0;
            let refused = std::mem::take(&mut self.queue).into_iter().map(|q| (q.client, q.request));
            let reads = std::mem::take(&mut self.reads).into_iter().map(|r| (r.client, r.request));
            for (client, request) in refused.chain(reads).collect::<Vec<_>>() {
                self.reply(now, client, Response::Refused { request, why: why.clone() }, out);
            }
            // T8: proposed, so it may still be decided by whoever leads next.
            for batch in std::mem::take(&mut self.pending).into_values() {
                for (client, request, _) in batch.waiting {
                    self.reply(now, client, Response::Unsure { request }, out);
                }
            }
        }
        self.leading = leading;
        self.lateness.begin(now, &self.timeouts);
        self.let_in.clear();
        self.doubts.clear();
        self.idle = Idle::default();
        self.recovery_step(now, txn::Input::Abandon, out);
        if leading.is_some() {
            self.idle = Idle::begin(now, self.timeouts.session_idle(), &self.bank);
            let holds: Vec<TxnId> = self.bank.holds().iter().map(|(id, _)| id).collect();
            holds.into_iter().for_each(|id| self.watch(now, Range::one(id)));
        }
    }

    // ---- what is decided ----

    fn apply_decided(&mut self, now: Time, out: &mut Output) {
        if self.bank.applied() == self.replica.decided() {
            return;
        }
        let mut effects = std::mem::take(&mut self.scratch.0);
        let (mut committed, mut aborted) = (0, Vec::new());
        while self.bank.applied() < self.replica.decided() {
            let slot = self.bank.applied().next();
            let (_, value) = self.replica.entry(slot).expect("P2: a decided slot has its value in the log");
            let value = value.clone();
            self.bank.apply(slot, &value, &mut effects);
            self.comparison.applied(slot, self.bank.digest());
            self.cuts.applied(&self.bank, &value);
            self.history.applied(slot, &effects.history);
            committed += effects.committed.len() as u64;
            aborted.append(&mut effects.aborted);
            if self.leading.is_some() {
                effects.prepared.iter().for_each(|range| self.watch(now, *range));
                // Afterwards, since one slot may hold both a prepare and its outcome.
                effects.settled.iter().for_each(|range| self.doubts.settle(*range));
                self.idle.used(now, &effects.used);
                if effects.crowded {
                    self.idle.crowded(now, self.timeouts.session_idle(), &self.bank);
                }
            }
            let Some(batch) = self.pending.remove(&slot) else { continue };
            let mut results = std::mem::take(&mut effects.results).into_iter();
            let mut transactions = 0;
            for (client, request, blocks) in batch.waiting {
                let results: Vec<_> = results.by_ref().take(blocks).collect();
                transactions += results.iter().map(|r| r.transactions()).sum::<u64>();
                // P4, T8: it is decided, but what it did is what others contradict.
                let response = match self.comparison.is_silent() {
                    true => Response::Unsure { request },
                    false => Response::Done { request, results },
                };
                self.reply(now, client, response, out);
            }
            out.events.push(Event::Led { slot, transactions, latency: now.since(batch.proposed) });
        }
        self.scratch.0 = effects;
        if committed > 0 || !aborted.is_empty() {
            out.events.push(Event::Applied { committed, aborted });
        }
        self.replica.trim();
    }
}

#[cfg(test)]
mod tests;
