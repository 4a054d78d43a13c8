//! What goes into a coordinator and what comes out of it.

use std::fmt;

use crate::txn::link::Reach;
use crate::txn::message::{Request, Response};
use crate::types::{AccountId, Ballot, NodeId, Reason, Session, ShardId, Time, Transfer, TxnId};

/// What a coordinator can be asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    Transfer(Transfer),
    /// A linearizable read.
    Read(AccountId),
    /// Open a session for transfers that the client names.
    Open,
    /// A transfer that the client names, so that it may ask for it again, here or elsewhere: the id stands for one
    /// transfer, which takes effect once or not at all. A sequence is at most [`Coordinator::named_max`].
    ///
    /// [`Coordinator::named_max`]: crate::txn::Coordinator::named_max
    Named {
        id: TxnId,
        transfer: Transfer,
    },
    /// What became of a transaction.
    Lookup(TxnId),
    /// Ask every shard whether it has a leader; those without a majority only if `anew` is set.
    Confirm {
        anew: bool,
    },
    /// Answered once everything given so far is finished, outcomes included, wherever there is a majority.
    Settle,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// `tag` is the caller's own name for it; it comes back with the answer.
    Submit {
        tag: u64,
        op: Op,
    },
    Response {
        from: NodeId,
        response: Response,
    },
    /// A connection to this server stands. Until then nothing is sent to it.
    Connected(NodeId),
    /// The connection is gone, or could not be made. What was sent on it may or may not have arrived.
    Disconnected(NodeId),
    /// The server to ask first in its shard, and to campaign if nobody leads.
    Hint(NodeId),
    /// Finish a transaction that `home`, a participant, has in doubt (T4).
    Recover {
        id: TxnId,
        /// The transfer, if a client has named it.
        name: Option<Transfer>,
        participants: [ShardId; 2],
        home: ShardId,
    },
    /// Let a session of this server's shard expire (T7). `live` are the older ones that have not.
    Retire {
        session: Session,
        live: Vec<Session>,
    },
    /// Stop recovering: this server leads no more, or in another ballot.
    Abandon,
    /// The turn is over: act on what it brought, and on the time.
    TurnEnd,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    Committed,
    Aborted(Reason),
    /// Not known at present; a second answer follows when it is.
    Unknown,
    Balance(u64),
    Opened(Session),
    /// A session has no id as high as this one: nothing was done under it.
    SessionFull,
    /// The session was closed before this transfer was executed, which it never will be.
    Closed,
    /// Nobody knows the session of a named transfer: it was never opened, or nobody will ever know how the transfer ended.
    Forgotten,
    Found(Found),
    /// A question about an id could not be put to every shard, one of which lacks a majority: nothing is said of what became
    /// of its transfer, least of all that it was aborted (T8).
    NoAnswer,
    /// By shard; none is `Searching`.
    Confirmed(Vec<Reach>),
    Settled,
}

/// What is known of a transaction that somebody asks about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Found {
    Committed,
    /// For good, unless the id is given to another transfer. `None` if it is not known any more who said NO, or if its
    /// session was closed before it was ever executed.
    Aborted(Option<Reason>),
    /// It is under way, or waits to be recovered (T4).
    InDoubt,
    /// It is over and forgotten. (Of a coordinator's own transaction a shard without a part in it may say so too early.)
    Finished,
    /// No shard has ever heard of it; it may yet come.
    NeverSeen,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Committed => f.write_str("committed"),
            Found::Aborted(Some(reason)) => write!(f, "aborted: {}", reason.name()),
            Found::Aborted(None) => f.write_str("aborted"),
            Found::InDoubt => f.write_str("in doubt"),
            Found::Finished => f.write_str("finished"),
            Found::NeverSeen => f.write_str("never seen"),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Answer {
    pub tag: u64,
    pub outcome: Outcome,
    /// When it first left for a server; `None` if it never did.
    pub first_sent: Option<Time>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    SessionOpened(Session),
    /// The window of the session is stuck; another one takes over.
    SessionRenewed,
    /// A shard has closed the session, or let it expire; another one takes over (T7).
    SessionLost {
        session: Session,
        expired: bool,
    },
    /// No shard keeps a record of these any more: how they ended will never be known.
    Forgotten {
        id: TxnId,
        count: u32,
    },
    LeaderFound {
        shard: ShardId,
        leader: NodeId,
        ballot: Ballot,
    },
    NoQuorum {
        shard: ShardId,
    },
    Retrying {
        shard: ShardId,
        units: usize,
    },
    Fencing {
        id: TxnId,
        count: u32,
    },
    Recovered {
        id: TxnId,
        commit: bool,
    },
    RecoveryDropped {
        id: TxnId,
    },
    /// This leader lets a session expire (T7).
    Retiring {
        session: Session,
    },
    /// Something of the session is still in doubt in this shard.
    RetirementWaits {
        session: Session,
        shard: ShardId,
    },
    RetirementDropped {
        session: Session,
    },
    /// No shard knows the session any more.
    SessionExpired {
        session: Session,
    },
    /// A server answered with something that the protocol does not provide for.
    Protocol {
        from: NodeId,
        what: String,
    },
}

#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Output {
    pub send: Vec<(NodeId, Request)>,
    /// Servers to which a connection is wanted; asked for again until it stands.
    pub connect: Vec<NodeId>,
    pub answers: Vec<Answer>,
    pub events: Vec<Event>,
}
