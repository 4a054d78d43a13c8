//! One simulated server: its disk, its core while it runs, and what its turn hands over.

use std::collections::BTreeMap;

use crate::drive::Ports;
use crate::paxos::{self, Message};
use crate::shard::{self, Input, Shard};
use crate::sim::clock::Clock;
use crate::sim::damage::Damage;
use crate::sim::disk::{Doom, SimDisk};
use crate::sim::network::Place;
use crate::sim::promises::Told;
use crate::storage::{CommitStats, Wal};
use crate::txn::message::{Request, Response};
use crate::types::{ClientId, NodeId, Slot, Time, Value};

/// How the next turn of a server ends early.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Harm {
    /// The power goes after this many more writes and syncs.
    Fuse(u64),
    /// The n-th write, or sync, from now fails; the server must stop.
    FailWrite(u64),
    FailSync(u64),
    /// Everything is synced, and then the server dies before anything that waited for it leaves.
    BeforeRelease,
    /// This happens when it next writes over a vote.
    Overwriting(Doom),
}

impl Running {
    /// A decided value from the log on disk.
    pub fn value(&self, slot: Slot) -> Option<Value> {
        let entries = self.wal.read(slot, 0).ok()?;
        entries.into_iter().next().filter(|(first, ..)| *first == slot).map(|(_, _, value)| value)
    }
}

/// What is wrong with the disk of a server, and has not been found yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ailment {
    Wiped,
    Damaged(Damage),
}

/// A server that runs.
pub struct Running {
    pub shard: Shard,
    pub wal: Wal<SimDisk>,
}

pub struct Server {
    pub id: NodeId,
    pub disk: SimDisk,
    pub running: Option<Running>,
    /// The cable is pulled and the timers stand still; memory is kept.
    pub failed: bool,
    pub inbox: Vec<Input>,
    /// Connections to this server, and who opened them.
    pub clients: BTreeMap<ClientId, Place>,
    /// The turn is over, and the disk done, at this time.
    pub busy_until: Time,
    pub dies_before_release: bool,
    pub overwriting: Doom,
    pub clock: Clock,
    /// What everything its disk does takes, as a multiple.
    pub disk_slowness: u64,
    /// It stood still, and has not taken a turn since.
    pub stalled: bool,
    /// Its clock jumped, ahead or not, and it has not taken a turn since.
    pub jumped: Option<bool>,
    /// Whether the power was cut since it last ran.
    pub power_lost: bool,
    pub ailment: Option<Ailment>,
    /// Its disk was replaced, and it was not let in again yet.
    pub rejoining: bool,
    /// Its log was damaged, and it does not know all its votes again yet (S2).
    pub healing: bool,
    /// How often its disk was replaced.
    pub disks: u64,
    /// Whether another server ever began to send it a snapshot.
    pub was_sent_snapshot: bool,
    /// It went on from one a moment ago.
    pub installed: bool,
    /// Whether its files were ever damaged.
    pub flipped: bool,
    /// It refused or dropped something for lack of space, and has had none since.
    pub starved: bool,
    /// It refused to start, and will not be asked again.
    pub lost: bool,
    /// What it has told others that it keeps (P1).
    pub told: Told,
    /// It will misread its log when it starts next.
    pub misreads: bool,
    /// It did, and has not started since.
    pub misled: bool,
    /// A slot after which its state was wrong for that.
    pub wrong_at: Option<Slot>,
    /// Whether it ever misread its log.
    pub ever_misled: bool,
    /// It was told to stop, and does so when it has left the lead, or at this time.
    pub leaves_by: Option<Time>,
    /// Turns in a row that nothing but a deadline in the past brought about.
    pub spinning: u32,
}

impl Server {
    pub fn new(id: NodeId, clock: Clock) -> Server {
        Server {
            id,
            disk: SimDisk::default(),
            running: None,
            failed: false,
            inbox: Vec::new(),
            clients: BTreeMap::new(),
            busy_until: Time::default(),
            dies_before_release: false,
            overwriting: Doom::Spared,
            clock,
            disk_slowness: 1,
            stalled: false,
            jumped: None,
            power_lost: false,
            ailment: None,
            starved: false,
            lost: false,
            told: Told::default(),
            misreads: false,
            misled: false,
            wrong_at: None,
            ever_misled: false,
            flipped: false,
            rejoining: false,
            healing: false,
            disks: 0,
            was_sent_snapshot: false,
            installed: false,
            leaves_by: None,
            spinning: 0,
        }
    }

    /// Whether it is lost, or may be when it is started, or a majority cannot count on it yet.
    pub fn is_gone(&self) -> bool {
        self.lost || self.ailment.is_some() || self.rejoining || self.healing
    }

    pub fn is_up(&self) -> bool {
        self.running.is_some() && !self.failed
    }

    /// Whether it believes to lead.
    pub fn leads(&self) -> bool {
        self.running.as_ref().is_some_and(|r| r.shard.replica().is_leader())
    }
}

/// Something that a turn sent.
pub enum Sent {
    Peer(NodeId, Message),
    Client(ClientId, Response),
    Remote(NodeId, Request),
    Connect(NodeId),
    Paxos(paxos::Event),
    Shard(shard::Event),
    Synced,
}

/// Collects what a turn hands over, each with the time at which it leaves: after a sync, time has passed.
pub struct Outbox {
    pub at: Time,
    pub sync_us: u64,
    pub syncs: u32,
    pub sent: Vec<(Time, u32, Sent)>,
}

impl Outbox {
    pub fn new(now: Time, sync_us: u64) -> Outbox {
        Outbox { at: now, sync_us, syncs: 0, sent: Vec::new() }
    }

    fn push(&mut self, sent: Sent) {
        self.sent.push((self.at, self.syncs, sent));
    }
}

impl Ports for Outbox {
    fn peer(&mut self, to: NodeId, message: &Message) {
        self.push(Sent::Peer(to, message.clone()));
    }

    fn client(&mut self, to: ClientId, response: Response) {
        self.push(Sent::Client(to, response));
    }

    fn remote(&mut self, to: NodeId, request: Request) {
        self.push(Sent::Remote(to, request));
    }

    fn connect(&mut self, to: NodeId) {
        self.push(Sent::Connect(to));
    }

    fn flush(&mut self) {}

    fn synced(&mut self, _: &CommitStats) {
        self.push(Sent::Synced);
        self.at = Time(self.at.0 + self.sync_us);
        self.syncs += 1;
    }

    fn paxos_event(&mut self, event: paxos::Event) {
        self.push(Sent::Paxos(event));
    }

    fn shard_event(&mut self, event: shard::Event) {
        self.push(Sent::Shard(event));
    }
}
