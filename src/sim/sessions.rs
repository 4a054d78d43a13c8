//! What the logs say about the end of sessions, and what may not happen after it (T7).

use std::collections::BTreeSet;

use crate::bank::Status;
use crate::sim::coverage::{Coverage, Seen};
use crate::types::{Session, ShardId, TxnId};

/// Which shard has closed which session, and let it expire.
#[derive(Default)]
pub struct Sessions {
    naming: BTreeSet<Session>,
    closed: BTreeSet<(ShardId, Session)>,
    expired: BTreeSet<(ShardId, Session)>,
}

impl Sessions {
    /// A close was decided.
    pub fn close(&mut self, shard: ShardId, session: Session, status: Status, coverage: &mut Coverage) {
        self.check_status(shard, session, status);
        if matches!(status, Status::Done | Status::Yes) {
            self.closed.insert((shard, session));
        }
        coverage.see_if(status == Status::Done, Seen::SessionClosed);
        coverage.see_if(status == Status::Yes, Seen::ExpiryWaits);
    }

    /// An expiry was decided. Returns whether the shard has just forgotten the session.
    pub fn expire(&mut self, shard: ShardId, session: Session, status: Status) -> bool {
        assert_eq!(status, Status::Done, "T7: {shard} was told to let {session} expire too early");
        self.expired.insert((shard, session))
    }

    /// A session was opened that is for names.
    pub fn opened_for_names(&mut self, session: Session) {
        self.naming.insert(session);
    }

    /// A shard said whether a session is one of those.
    pub fn touched(&self, shard: ShardId, session: Session, status: Status) {
        self.check_status(shard, session, status);
        let right = session.shard() == shard && self.naming.contains(&session);
        assert!(right || status != Status::Done, "T7: {shard} takes {session} for one that a client opened");
    }

    fn check_status(&self, shard: ShardId, session: Session, status: Status) {
        assert!(
            !self.is_expired(shard, session) || status == Status::Expired,
            "T7: {session} has expired in {shard}, and was answered {status:?}"
        );
    }

    /// A transaction, or a mark, was mentioned in a log. `first` says that it had no register there.
    pub fn mentioned(&self, shard: ShardId, id: TxnId, status: Status, first: bool) {
        self.check_status(shard, id.session, status);
        let votes = matches!(status, Status::Committed | Status::Yes);
        assert!(
            !(first && votes && self.is_closed(shard, id.session)),
            "T7: {} is closed in {shard}, and then {id} was answered {status:?}",
            id.session
        );
    }

    pub fn took_effect(&self, shard: ShardId, id: TxnId) {
        assert!(
            !self.is_expired(shard, id.session),
            "T7: {id} took effect in {shard} after its session expired"
        );
    }

    /// Whether what has no register there never will have one.
    pub fn is_closed(&self, shard: ShardId, session: Session) -> bool {
        self.closed.contains(&(shard, session)) || self.is_expired(shard, session)
    }

    pub fn is_expired(&self, shard: ShardId, session: Session) -> bool {
        self.expired.contains(&(shard, session))
    }
}
