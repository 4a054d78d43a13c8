//! What can come of a call besides its result.

use std::fmt;

use crate::types::{Reason, TxnId};

/// Why a call has no result. [`Error::is_definite`] tells whether a transfer may be sent anew under another id.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Error {
    /// Nothing was done, and never will be, under this id; a repetition gets the same answer. A read has no id.
    Aborted { id: Option<TxnId>, reason: Reason },
    /// The transfer may or may not take effect: until the time-out nobody could say. Look the id up, or repeat it; under
    /// another id the money could move twice. `refusal` says why a server turned this client away meanwhile, if one did.
    Unknown { id: TxnId, refusal: Option<String> },
    /// The session of the id was closed, since nobody used it for as long as the configuration allows, or was never
    /// opened. With `ruled_out` the transfer was not executed before that, and never will be. Otherwise the bank has
    /// forgotten whether it was, and only the balances can tell.
    SessionExpired { id: TxnId, ruled_out: bool },
    /// No session has this sequence: it is 0, or beyond the highest one. Nothing was done, and never will be.
    NoSuchId { id: TxnId },
    /// Until the time-out nobody could answer a read or a question, or open a session: no transfer was sent. Without a
    /// reason, there was no answer at all.
    Unavailable { reason: Option<Reason> },
    /// The same, and a server turned this client away: it belongs to another bank or has another configuration. The text
    /// names the server and what differs.
    Refused(String),
    /// The configuration cannot be read, or is unsound. The text names the file and what is wrong.
    Config(String),
    /// The coordinator thread could not be started, or has ended; a log says why. No transfer was sent by this call.
    Broken(String),
}

impl Error {
    /// The id that this is about.
    pub fn id(&self) -> Option<TxnId> {
        match self {
            Error::Aborted { id, .. } => *id,
            Error::Unknown { id, .. } | Error::SessionExpired { id, .. } | Error::NoSuchId { id } => {
                Some(*id)
            }
            _ => None,
        }
    }

    /// Whether it is certain that the call moved nothing and that nothing of it ever will: a transfer that is still wanted
    /// may be given another id. Of [`Bank::repeat`](super::Bank::repeat) that holds for the id, whoever else sent it before.
    pub fn is_definite(&self) -> bool {
        match self {
            Error::Unknown { .. } => false,
            Error::SessionExpired { ruled_out, .. } => *ruled_out,
            // Nothing was sent now, but an id that is repeated may have been sent before.
            Error::Broken(_) => false,
            _ => true,
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Aborted { id: Some(id), reason } => write!(f, "{id} aborted: {reason}"),
            Error::Aborted { id: None, reason } => write!(f, "aborted: {reason}"),
            Error::Unknown { id, refusal } => {
                write!(
                    f,
                    "unknown: {id} may or may not take effect; look it up, or repeat it under the same id"
                )?;
                refusal.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"))
            }
            Error::SessionExpired { id, ruled_out: true } => {
                write!(
                    f,
                    "{id} aborted: its session is closed; nothing was done, take an id of another session"
                )
            }
            Error::SessionExpired { id, ruled_out: false } => write!(
                f,
                "unknown: the session of {id} was never opened, or the bank has forgotten it and what became of its \
                 transfers; look at the balances"
            ),
            Error::NoSuchId { id } => write!(f, "{id} aborted: no session has an id with this number"),
            Error::Unavailable { reason: Some(reason) } => {
                write!(f, "not available: {reason}; ask again later")
            }
            Error::Unavailable { reason: None } => {
                f.write_str("not available: no answer before the time-out; ask again later")
            }
            Error::Refused(why) | Error::Config(why) => f.write_str(why),
            Error::Broken(why) => write!(f, "no coordinator: {why}"),
        }
    }
}
