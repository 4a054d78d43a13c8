//! Replies that tell what became of a request. An error says behind its code what to do.

use crate::resp::codec::Reply;
use crate::types::{Reason, TxnId};

/// It took no effect and never will. A repetition with the same ID gets the same answer, so whoever tries again sends a
/// new request, with an ID of its own or without one.
pub fn refused(reason: Reason) -> Reply {
    let text = match reason {
        Reason::InvalidAmount => "INVALID the amount must be at least 1",
        Reason::SameAccount => "INVALID sender and receiver must be two accounts",
        Reason::UnknownAccount => "UNKNOWNACCOUNT the bank has no such account, choose another one",
        Reason::NoQuorum => {
            "NOQUORUM too few servers of a shard are up; nothing was done, send a new request later"
        }
        Reason::StorageFull => {
            "STORAGEFULL the disks of a shard are full; nothing was done, send a new request when there is space"
        }
        Reason::LockContention => {
            "LOCKED another transfer holds an account; nothing was done, send a new request"
        }
        Reason::InsufficientBalance => {
            "INSUFFICIENT the sender has less than the amount; nothing was done, choose a lower one"
        }
    };
    Reply::Error(text.into())
}

/// Nobody can know yet whether it takes effect. To send it again under another ID could move the money twice.
pub fn unknown(id: Option<TxnId>) -> Reply {
    let advice = match id {
        Some(id) => format!("ask with TXN {id}, do not send it under another ID"),
        None => "look at the balances before you send it again".into(),
    };
    Reply::Error(format!("UNKNOWN it may or may not take effect; {advice}"))
}

/// A balance. All the money of a bank is no more than fits.
pub fn balance(units: u64) -> Reply {
    Reply::Integer(i64::try_from(units).unwrap_or(i64::MAX))
}

/// The server did not take the request, for it has too many under way.
pub fn overloaded() -> Reply {
    Reply::Error("BUSY too many requests are under way; this one was not taken, send it again later".into())
}
