//! Whether the logs bear out what clients are told who ask what became of an id (T2).

use super::*;
use crate::txn::Found;

impl Checker {
    fn all_of(&self, id: TxnId) -> impl Iterator<Item = &Txn> {
        self.txns.range((id, None)..).take_while(move |((other, _), _)| *other == id).map(|(_, txn)| txn)
    }

    /// Whether everybody who has a vote on a transfer of this id has decided a YES (T2).
    pub fn has_committed(&self, id: TxnId) -> bool {
        let yes = |txn: &Txn| txn.participants.iter().all(|part| txn.votes.get(part) == Some(&true));
        self.all_of(id).any(|txn| !txn.participants.is_empty() && yes(txn))
    }

    /// Whether the logs bear out what somebody was told who asked about an id, of which something had `committed` when that
    /// began (T2).
    pub fn bears_out(&self, id: TxnId, committed: bool, found: Found) -> bool {
        let votes = |vote| self.all_of(id).any(|txn| txn.votes.values().any(|yes| *yes == vote));
        let closed = |shard| self.sessions.is_closed(shard, id.session);
        match found {
            Found::Committed => self.has_committed(id),
            Found::Aborted(_) => !committed && (votes(false) || self.topology.shards().all(closed)),
            Found::InDoubt => !committed && votes(true),
            Found::Finished => {
                self.topology.shards().any(|shard| self.sessions.is_expired(shard, id.session))
                    || !self.named.contains(&id)
            }
            Found::NeverSeen => !committed,
        }
    }
}
