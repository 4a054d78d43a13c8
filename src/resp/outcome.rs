//! Replies that tell what became of a request. An error says behind its code what to do.

use crate::resp::codec::Reply;
use crate::types::{Reason, Session, TxnId};

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
        Reason::IdReused => {
            "IDREUSED this ID belongs to another transfer; nothing was done, send this one under an ID of its own"
        }
        Reason::NoSession => {
            "BUSY as many sessions are open as the bank keeps; nothing was done, send a new request later"
        }
    };
    Reply::Error(text.into())
}

/// Nobody can know yet whether it takes effect. To send it again under another ID could move the money twice.
pub fn unknown(id: Option<TxnId>) -> Reply {
    let advice = match id {
        Some(id) => {
            format!("send it again with ID {id}, or ask with TXN {id}; never send it under another ID")
        }
        None => "look at the balances before you send it again".into(),
    };
    Reply::Error(format!("UNKNOWN it may or may not take effect; {advice}"))
}

/// A shard that has to be asked lacks a majority.
pub fn no_answer() -> Reply {
    let text = "UNAVAILABLE too few servers of a shard are up to tell what became of it; ask again later, and never send it \
                under another ID before";
    Reply::Error(text.into())
}

/// A balance. All the money of a bank is no more than fits.
pub fn balance(units: u64) -> Reply {
    Reply::Integer(i64::try_from(units).unwrap_or(i64::MAX))
}

/// A session was opened.
pub fn opened(session: Session) -> Reply {
    Reply::Bulk(session.to_string().into_bytes())
}

/// The sequence of an ID is higher than those of a session.
pub fn session_full(most: u64) -> Reply {
    Reply::Error(format!(
        "SESSIONFULL a session has the IDs 1 to {most}; nothing was done, open another one with SESSION"
    ))
}

/// The session of an ID was closed before its transfer came.
pub fn closed() -> Reply {
    Reply::Error("EXPIRED the session is closed; nothing was done, open another one with SESSION".into())
}

/// The session of an ID is not known.
pub fn forgotten() -> Reply {
    Reply::Error(
        "EXPIRED the session was never opened, or nobody used it for so long that the bank has forgotten it and what \
         became of its transfers; look at the balances, and open another one with SESSION"
            .into(),
    )
}

/// The server did not take the request, for it has too many under way. What it took of an ID before may still take effect.
pub fn overloaded(id: Option<TxnId>) -> Reply {
    let with = id.map(|id| format!(", with ID {id}")).unwrap_or_default();
    let text = "too many requests are under way; this one was not taken, send it again later";
    Reply::Error(format!("BUSY {text}{with}"))
}
