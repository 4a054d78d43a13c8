//! What an operator can ask of one server, over its control channel or over the wire.

use serde::{Deserialize, Serialize};

use crate::audit::Listing;
use crate::runtime::status::Status;
use crate::types::{AccountId, Slot};

/// Orders are answered in the order in which they were given, with one [`Report`] each.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Pull the cable: both directions drop, timers stop; memory and disk stay.
    Fail,
    /// Plug it in again.
    Recover,
    /// The server's own, possibly stale, balances.
    Balances(Vec<AccountId>),
    /// Answered once this slot is applied here, or when the disk is full: then it may never be.
    AwaitApplied(Slot),
    /// Every transaction that committed here, in log order, from disk.
    Log,
    Status,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Report {
    Done,
    /// It cannot be done, and why.
    Failed(String),
    /// The slot is not applied yet, for lack of space.
    Behind {
        applied: Slot,
    },
    /// `None` for accounts that this server does not hold.
    Balances(Vec<Option<u64>>),
    Log(Listing),
    Status(Box<Status>),
}
