//! What the servers of one cluster say to each other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{Ballot, Cut, Incarnation, Loss, NodeId, Slot, Value};

/// A message between two servers of a cluster. The sender is known from the connection.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Message {
    PreVote(PreVote),
    PreVoteReply(PreVoteReply),
    Prepare(Prepare),
    Promise(Promise),
    Refuse(Refuse),
    Accept(Accept),
    Accepted(Accepted),
    Heartbeat(Heartbeat),
    HeartbeatReply(HeartbeatReply),
    Fetch(Fetch),
    Entries(Entries),
    /// The entries that the receiver lacks are gone; this snapshot stands for them.
    Snapshot(Cut),
    /// A server that lags asks for the `n`-th piece of the snapshot of a slot, counted from 0.
    GetPiece {
        slot: Slot,
        n: u64,
    },
    Piece {
        slot: Slot,
        n: u64,
        bytes: Value,
    },
    Digests(Digests),
    Learner(Learner),
    /// The leader of this ballot leads no more, for it is about to stop or too slow: whoever hears this may campaign at once.
    Resign {
        ballot: Ballot,
    },
}

impl Message {
    /// The ballot of a message that only its owner may write.
    pub fn written_in(&self) -> Option<Ballot> {
        match self {
            Message::Prepare(m) => Some(m.ballot),
            Message::Accept(m) => Some(m.ballot),
            Message::Heartbeat(m) => Some(m.ballot),
            Message::Resign { ballot } => Some(*ballot),
            _ => None,
        }
    }

    /// What a leader says with it of how far it has decided.
    pub fn decided(&self) -> Option<Slot> {
        match self {
            Message::Accept(m) => Some(m.decided),
            Message::Heartbeat(m) => Some(m.decided),
            _ => None,
        }
    }

    /// Which life of the sender's disk a message speaks of that counts towards a majority.
    pub fn vouched_by(&self) -> Option<Incarnation> {
        match self {
            Message::Promise(m) => Some(m.incarnation),
            Message::Accepted(m) => Some(m.incarnation),
            Message::HeartbeatReply(m) => Some(m.incarnation),
            _ => None,
        }
    }

    /// The values that it carries.
    pub fn values(&self) -> Box<dyn Iterator<Item = &Value> + '_> {
        match self {
            Message::Accept(m) => Box::new(m.values.iter()),
            Message::Promise(m) => Box::new(m.cast().map(|(_, _, value)| value)),
            Message::Entries(m) => Box::new(m.entries.iter().map(|(_, value)| value)),
            _ => Box::new(std::iter::empty()),
        }
    }
}

/// "Would you follow me if I campaigned?" Changes nothing at the receiver.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct PreVote {
    /// Tells apart the attempts of one server, so that an answer counts only as long as what it answers is fresh.
    pub attempt: u64,
    /// Whether the asker's log has room for new work. One without leads only where nobody else could.
    pub has_room: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct PreVoteReply {
    pub attempt: u64,
    /// Yes, unless a leader other than the asker was heard within the election time-out, or this server has room in its
    /// log and the asker has none.
    pub granted: bool,
    /// The highest ballot that the answering server has promised; the campaign must go above it.
    pub promised: Ballot,
}

/// Phase 1a, for all slots above what the candidate has decided.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Prepare {
    pub ballot: Ballot,
    /// Everything up to this slot is decided at the candidate.
    pub decided: Slot,
}

/// Phase 1b.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Promise {
    pub ballot: Ballot,
    /// Everything up to this slot is decided at the acceptor.
    pub decided: Slot,
    /// The acceptor's votes for `decided + 1`, `decided + 2`, …, each with the ballot it was cast in.
    pub votes: Vec<(Ballot, Value)>,
    /// In place of `votes`: what is left of them where the acceptor's disk was damaged (S2).
    pub loss: Option<Loss>,
    pub incarnation: Incarnation,
}

/// "I have promised a higher ballot than the one you wrote in."
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Refuse {
    pub ballot: Ballot,
    pub promised: Ballot,
}

/// Phase 2a for one or several consecutive slots.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Accept {
    pub ballot: Ballot,
    /// Everything up to this slot is decided at the leader.
    pub decided: Slot,
    /// The slot of the first value.
    pub first: Slot,
    pub values: Vec<Value>,
}

/// Phase 2b, cumulative within the ballot: every slot up to `position` is accepted in it, or decided.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Accepted {
    pub ballot: Ballot,
    pub position: Slot,
    pub incarnation: Incarnation,
}

/// "I lead in this ballot."
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Heartbeat {
    pub ballot: Ballot,
    /// Number of the heartbeat round, echoed in the answer (P5).
    pub round: u64,
    /// Everything up to this slot is decided at the leader.
    pub decided: Slot,
    /// The last slot that phase 1 of this ballot brought up (S2).
    pub phase1_end: Slot,
}

/// Whether a server may have forgotten votes (S2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Doubts {
    None,
    /// Of older ballots: that matters no more once it has accepted what phase 1 of this one brought up.
    Ending,
    /// Of this very ballot: until there is a later one.
    Standing,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct HeartbeatReply {
    pub ballot: Ballot,
    pub round: u64,
    /// As in [`Accepted`]; it tells a leader what was lost on the way.
    pub position: Slot,
    /// Bytes of records that this server would still accept, if its disk is full.
    pub room: Option<u64>,
    pub doubts: Doubts,
    pub incarnation: Incarnation,
}

/// "I have a new disk, and vote again when a `Rejoin` for it is decided; I have applied everything up to `decided`" (S3).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Learner {
    pub ballot: Ballot,
    pub decided: Slot,
    pub incarnation: Incarnation,
}

/// A candidate or a learner asks for decided entries that it lacks.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Fetch {
    pub from: Slot,
}

/// Decided entries, from `first` on, each with the ballot under which the sender holds it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Entries {
    pub first: Slot,
    pub entries: Vec<(Ballot, Value)>,
}

/// "After this slot these servers reported these digests of their states, as far as I know" (P4). No part of Paxos: a
/// replica takes it for a sign of life, and who fills it in also judges it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Digests {
    pub slot: Slot,
    pub reports: BTreeMap<NodeId, u64>,
    /// Whether the sender wants to be told what the receiver knows.
    pub asks: bool,
}
