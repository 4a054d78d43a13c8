//! What a replica asks of its driver, and what it says about itself.

use crate::paxos::message::Message;
use crate::types::{Ballot, NodeId, Record, Slot};

/// What a step asks of its driver. The order within each list is the order in which to act.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Output {
    /// To be made durable before anything in `after` leaves.
    pub records: Vec<Record>,
    /// Messages that promise nothing and may leave at once.
    pub now: Vec<(NodeId, Message)>,
    /// Messages, to this server itself too, that may leave only when every record so far is durable (P1).
    pub after: Vec<(NodeId, Message)>,
    /// Decided entries to be read from disk and handed back.
    pub reads: Vec<ReadLog>,
    /// Servers that lack entries which are gone here, so that only a snapshot helps them.
    pub gone: Vec<NodeId>,
    pub events: Vec<Event>,
}

/// A request to read decided entries that are no longer in memory.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ReadLog {
    pub purpose: Purpose,
    pub from: Slot,
    /// Not beyond this slot.
    pub to: Slot,
    pub max_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Purpose {
    /// A follower lags behind the leader's memory.
    CatchUp(NodeId),
    /// A candidate asked for what it lacks.
    Fetch(NodeId),
    /// This server itself, whose log was damaged, needs what comes behind the damage (S2).
    Salvage,
}

/// What happened, for logs, metrics and golden tests; the core itself never logs.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    PreVoteBegun,
    PreVoteRefused {
        by: NodeId,
    },
    Campaigning {
        ballot: Ballot,
    },
    Promised {
        ballot: Ballot,
    },
    /// Phase 1 is over; the slots up to `phase1_end` are proposed again.
    Leading {
        ballot: Ballot,
        decided: Slot,
        phase1_end: Slot,
    },
    LostLeadership {
        ballot: Ballot,
        why: &'static str,
    },
    /// The leader left, and this server campaigns at once.
    Succeeds {
        from: NodeId,
    },
    CaughtUp {
        from: NodeId,
        decided: Slot,
    },
    /// S2: values behind damage were taken from this server's own log.
    Salvaged {
        decided: Slot,
    },
    /// S2: what damage took is made good.
    Mended,
    /// S2: a decided value that could not be read any more came from another server, and is written once more.
    Rewritten {
        slot: Slot,
    },
    /// S2: a campaign failed since too few servers know what was voted, or, where it is decided, since none of them has the
    /// values. Runs of slots, each from its first to its last.
    Lost {
        slots: Vec<(Slot, Slot)>,
        decided: bool,
    },
    Resending {
        to: NodeId,
        from: Slot,
    },
    /// The disk is full; this much still fits into the log.
    SpaceShort {
        room: u64,
    },
    /// The disk gives space again.
    SpaceBack,
    /// Something was dropped for lack of room, as if it had been lost.
    NoRoom {
        what: &'static str,
    },
    /// A message that fits nothing this server is doing.
    Ignored {
        from: NodeId,
        what: &'static str,
    },
}

/// Where this server stands, as it would tell a client.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Standing {
    Leading,
    Following(NodeId),
    /// No leader is known, but a majority answers: there will be one.
    Searching,
    /// This server has asked for an election time-out, and no majority answered.
    NoQuorum,
}
