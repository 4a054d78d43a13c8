//! What a run shows: the plain data of a finished set, and its forms as tables, as JSON and at the prompt.
//!
//! The runner measures and fills in [`SetReport`]; everything below only formats it. So what a person sees, what a
//! program reads and what a test compares come from the same numbers.
//!
//! * [`tables`]: text for people.
//! * [`json`]: one object per set, as `data/run-output.schema.json` describes it.
//! * [`prompt`]: what a person may type between two sets.
//! * [`mod@progress`]: a bar on standard error during a long set.
//!
//! Deliberately absent: asking servers anything, clocks, and printing (but for the prompt, which is a conversation).

pub mod json;
pub mod progress;
pub mod prompt;
pub mod tables;

pub use progress::{progress, soak_bar};

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Topology;
use crate::metrics::{Latencies, ServerMetrics, per_second};
use crate::testset::Command;
use crate::types::{AccountId, Ballot, NodeId, Reason, ShardId, Slot, Transfer, TxnId};

/// One set after its end.
#[derive(Clone, PartialEq, Debug)]
pub struct SetReport {
    /// As written in the file; not necessarily unique.
    pub set: u64,
    /// The servers that were up when the set started, ascending.
    pub live: Vec<NodeId>,
    /// One per row, in file order.
    pub results: Vec<RowReport>,
    /// Transfers that were left unknown before and whose outcome became known during this set.
    pub resolved: Vec<Resolved>,
    /// Every account that the set's transfers name, on every server of its cluster. `None`: the server has crashed.
    pub modified: BTreeMap<AccountId, BTreeMap<NodeId, Option<u64>>>,
    pub performance: Performance,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowReport {
    /// Position in the set, from 1.
    pub n: usize,
    pub command: Command,
    /// Of a transfer between accounts that exist; else `None`.
    pub scope: Option<Scope>,
    pub outcome: RowOutcome,
    /// From first send to reply; `None` when nothing was sent or nobody replied.
    pub latency: Option<Duration>,
}

/// Transfers end as `Committed`, `Aborted` or `Unknown`, reads as `Balance` or `Aborted`, changes of servers as `Done`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowOutcome {
    Committed,
    Aborted(Reason),
    /// Nobody can know yet.
    Unknown,
    Balance(u64),
    Done,
}

/// Whether one shard or two take part in a transfer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Scope {
    IntraShard,
    CrossShard,
}

/// The late outcome of a transfer of an earlier set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The number of the set in which it stands, and its row there.
    pub set: u64,
    pub n: usize,
    pub transfer: Transfer,
    pub scope: Option<Scope>,
    /// `Err` is an abort.
    pub outcome: Result<(), Reason>,
}

/// What happened to the transactions of a set (or, merged, of a run), and how fast.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Performance {
    /// Transfers by outcome; reads are not counted here.
    pub committed: u64,
    pub aborted: BTreeMap<Reason, u64>,
    pub unknown: u64,
    /// The same for transfers inside one shard and across two. Those between unknown accounts are in neither.
    pub intra: ScopeTally,
    pub cross: ScopeTally,
    /// Finished transfers per second of `span`; see [`Performance::set_span`].
    pub throughput_tps: f64,
    /// Of all rows that got a reply, reads included.
    pub latency: Latencies,
    /// How long rows waited for earlier rows on the same account.
    pub held_back: Latencies,
    pub peak_in_flight: usize,
    /// Syncs of all servers in this time.
    pub syncs: u64,
    /// From first send to last reply, without the waits for failures and recoveries.
    pub span: Duration,
    /// The servers as they stood at the end.
    pub servers: Vec<ServerRow>,
}

#[derive(Clone, Default, PartialEq, Debug)]
pub struct ScopeTally {
    pub committed: u64,
    pub aborted: u64,
    pub unknown: u64,
    /// Of those that got a reply.
    pub latency: Latencies,
}

/// One server at the end of a set.
#[derive(Clone, PartialEq, Debug)]
pub struct ServerRow {
    pub server: NodeId,
    pub up: ServerState,
    pub role: Role,
    pub ballot: Ballot,
    pub decided: Slot,
    pub applied: Slot,
    pub disk_full: bool,
    pub metrics: ServerMetrics,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum ServerState {
    #[default]
    Live,
    /// Cut off: its memory and disk are as they were.
    Failed,
    /// Its thread and memory are gone; only its directory is left.
    Crashed,
}

/// Where a server stands in its cluster, by its own account.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub enum Role {
    /// No leader is known, but a majority answers.
    #[default]
    Searching,
    Follower,
    Leader,
    /// No majority was heard for an election time-out.
    NoQuorum,
    /// It has a new disk, and does not vote until it is let in again.
    Learner,
}

/// A server that became leader: phase 1 ended and its open slots were proposed again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Election {
    pub shard: ShardId,
    pub server: NodeId,
    pub ballot: Ballot,
    /// Since the start of the run.
    pub at: Duration,
    /// How many open slots phase 1 found.
    pub phase1_slots: u64,
}

/// A committed transaction in the log of one server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogLine {
    pub slot: Slot,
    pub id: TxnId,
    pub transfer: Transfer,
    pub scope: Scope,
}

/// The committed transactions of one server, in log order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    pub lines: Vec<LogLine>,
    /// Runs of slots, from one to another, of which it does not know any more.
    pub gaps: Vec<(Slot, Slot)>,
}

impl SetReport {
    /// Transfers whose outcome was unknown at the end of this set.
    pub fn unknown(&self) -> usize {
        self.results.iter().filter(|row| row.outcome == RowOutcome::Unknown).count()
    }

    /// How this server stood at the end. One that is not listed counts as live.
    pub fn state_of(&self, server: NodeId) -> ServerState {
        let row = self.performance.servers.iter().find(|row| row.server == server);
        row.map_or(ServerState::Live, |row| row.up)
    }
}

impl Scope {
    /// `None` when the topology lacks one of the accounts.
    pub fn of(transfer: &Transfer, topology: &Topology) -> Option<Scope> {
        let (from, to) = (topology.shard_of(transfer.from)?, topology.shard_of(transfer.to)?);
        Some(if from == to { Scope::IntraShard } else { Scope::CrossShard })
    }

    /// The spelling used in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Scope::IntraShard => "intra-shard",
            Scope::CrossShard => "cross-shard",
        }
    }
}

impl Performance {
    /// Counts one finished row. Latencies are not taken from it: the coordinator records those as they happen.
    pub fn count(&mut self, row: &RowReport) {
        let Command::Transfer(_) = row.command else { return };
        let mut nowhere = ScopeTally::default();
        let tally = match row.scope {
            Some(Scope::IntraShard) => &mut self.intra,
            Some(Scope::CrossShard) => &mut self.cross,
            None => &mut nowhere,
        };
        match row.outcome {
            RowOutcome::Committed => {
                self.committed += 1;
                tally.committed += 1;
            }
            RowOutcome::Aborted(reason) => {
                *self.aborted.entry(reason).or_default() += 1;
                tally.aborted += 1;
            }
            RowOutcome::Unknown => {
                self.unknown += 1;
                tally.unknown += 1;
            }
            RowOutcome::Balance(_) | RowOutcome::Done => {}
        }
    }

    /// Sets the time that the transactions took and, from it and the counts so far, the throughput.
    pub fn set_span(&mut self, span: Duration) {
        self.span = span;
        self.throughput_tps = per_second(self.committed + self.aborted_total(), span);
    }

    pub fn aborted_total(&self) -> u64 {
        self.aborted.values().sum()
    }

    /// Adds a later set, so that the result speaks of both. The servers are those of the later one.
    pub fn merge(&mut self, later: &Performance) {
        self.committed += later.committed;
        for (reason, count) in &later.aborted {
            *self.aborted.entry(*reason).or_default() += count;
        }
        self.unknown += later.unknown;
        self.intra.merge(&later.intra);
        self.cross.merge(&later.cross);
        self.latency.merge(&later.latency);
        self.held_back.merge(&later.held_back);
        self.peak_in_flight = self.peak_in_flight.max(later.peak_in_flight);
        self.syncs += later.syncs;
        self.set_span(self.span + later.span);
        self.servers.clone_from(&later.servers);
    }
}

impl ScopeTally {
    fn merge(&mut self, later: &ScopeTally) {
        self.committed += later.committed;
        self.aborted += later.aborted;
        self.unknown += later.unknown;
        self.latency.merge(&later.latency);
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for ServerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServerState::Live => "live",
            ServerState::Failed => "failed",
            ServerState::Crashed => "crashed",
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Follower => "follower",
            Role::Searching => "searching",
            Role::NoQuorum => "no quorum",
            Role::Learner => "learner",
            Role::Leader => "leader",
        })
    }
}

impl fmt::Display for RowOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RowOutcome::Committed => f.write_str("committed"),
            RowOutcome::Aborted(reason) => write!(f, "aborted: {reason}"),
            RowOutcome::Unknown => f.write_str("unknown"),
            RowOutcome::Balance(balance) => write!(f, "balance {balance}"),
            RowOutcome::Done => f.write_str("done"),
        }
    }
}
