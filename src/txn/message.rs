//! What clients (coordinators, and servers that recover a transaction) and servers say to each other.

use serde::{Deserialize, Serialize};

use crate::bank::BlockResult;
use crate::types::{AccountId, Ballot, NodeId, Reason, ShardId, Slot, Transfer, TxnId, Value};

/// From a client to a server. Requests are numbered by the client, per connection or wider; answers name the number.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Blocks for the shard's log, see [`crate::bank::command`]; they land in one slot, in this order.
    Submit { request: u64, blocks: Value },
    /// The balance of an account.
    Read { request: u64, account: AccountId, local: bool },
    /// What became of a transaction, as far as this shard knows. Sets nothing, unlike a fence.
    Status { request: u64, id: TxnId },
    /// "Do you lead, confirmed from now on?" Answered like a read, without one (P5). A server without a leader
    /// campaigns at once if `campaign` is set.
    Probe { request: u64, campaign: bool },
}

impl Request {
    pub fn number(&self) -> u64 {
        match self {
            Request::Submit { request, .. }
            | Request::Read { request, .. }
            | Request::Status { request, .. }
            | Request::Probe { request, .. } => *request,
        }
    }
}

/// From a server to a client.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Response {
    /// The blocks are decided and applied; one result each, in order.
    Done { request: u64, results: Vec<BlockResult> },
    /// The answer to a read.
    Balance { request: u64, balance: Result<u64, Reason> },
    /// The code of what this shard remembers of a transaction ([`crate::bank::Status`]), `None` if nothing ever mentioned
    /// it here; whose register that is, if a client has named it; and its participants while it is in doubt.
    Status { request: u64, status: Option<u8>, name: Option<Transfer>, participants: Option<[ShardId; 2]> },
    /// This server leads, and a majority confirmed it after the probe arrived.
    Leading { request: u64, ballot: Ballot, decided: Slot },
    /// Nothing of the request was proposed.
    Refused { request: u64, why: Refusal },
    /// The request was proposed, then this server lost the leadership, or others contradict its state (P4): whether it takes
    /// effect is open.
    Unsure { request: u64 },
}

impl Response {
    pub fn number(&self) -> u64 {
        match self {
            Response::Done { request, .. }
            | Response::Balance { request, .. }
            | Response::Status { request, .. }
            | Response::Leading { request, .. }
            | Response::Refused { request, .. }
            | Response::Unsure { request } => *request,
        }
    }
}

/// Why a server did not take a request.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Refusal {
    /// Another server leads, as far as this one knows; `None` while there is none yet.
    NotLeader(Option<NodeId>),
    /// This server has not heard from a majority for an election time-out.
    NoQuorum,
    /// Its queue is full, or others contradict its state and a majority is still to be heard (P4).
    Busy,
    /// The blocks are malformed, or belong to another shard.
    Malformed(String),
    /// The disks of a majority have no space for it. What frees locks, and every read, is served on.
    StorageFull,
}
