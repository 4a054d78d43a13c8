//! What is held for votes of YES that have no outcome yet (T5), by transaction.
//!
//! Transactions of a session are prepared and decided in blocks of consecutive sequences, thousands at once; so they are kept
//! in chunks of neighbours, in which nothing has to be searched or moved. Equal contents are equal in memory, too.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::types::{Session, ShardId, Transfer, TxnId};

/// Sequences in a chunk: half a kilobyte. What a session with one transaction in doubt costs, too.
const CHUNK: u64 = 16;

/// An undecided YES: what is held until the outcome arrives. The balance still includes it (B2).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Hold {
    pub transfer: Transfer,
    pub participants: [ShardId; 2],
    /// A client named it: see [`Mention`](super::apply::Mention).
    pub named: bool,
}

/// Every undecided YES of a shard.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Holds {
    /// Those that have any.
    sessions: BTreeMap<Session, SessionHolds>,
    len: usize,
}

impl Holds {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, id: &TxnId) -> Option<&Hold> {
        self.sessions.get(&id.session)?.get(id.seq, &mut 0)
    }

    /// In order of ids.
    pub fn iter(&self) -> impl Iterator<Item = (TxnId, &Hold)> {
        self.sessions.iter().flat_map(|(session, held)| {
            held.iter().map(|(seq, hold)| (TxnId { session: *session, seq }, hold))
        })
    }

    /// Whether a session has anything in doubt here.
    pub fn has(&self, session: Session) -> bool {
        self.sessions.contains_key(&session)
    }

    /// What was held for this transaction before is replaced.
    pub fn insert(&mut self, id: TxnId, hold: Hold) {
        let mut held = self.take(id.session);
        held.insert(id.seq, hold, &mut 0);
        self.put(id.session, held);
    }

    /// Takes out all that belongs to a session, to be given back by [`Holds::put`].
    pub fn take(&mut self, session: Session) -> SessionHolds {
        let held = self.sessions.remove(&session).unwrap_or_default();
        self.len -= held.len;
        held
    }

    pub fn put(&mut self, session: Session, held: SessionHolds) {
        if held.len > 0 {
            self.len += held.len;
            self.sessions.insert(session, held);
        }
    }
}

/// Every undecided YES of a session in one shard.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct SessionHolds {
    /// By sequence, divided by [`CHUNK`], in ascending order; none is empty.
    chunks: VecDeque<(u64, Box<Chunk>)>,
    len: usize,
}

#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
struct Chunk {
    len: usize,
    holds: [Option<Hold>; CHUNK as usize],
}

/// `near` is where the last hold was that somebody looked for, to begin with 0. Blocks name neighbours, so the next one is not
/// far from there.
impl SessionHolds {
    #[inline]
    pub fn get(&self, seq: u64, near: &mut usize) -> Option<&Hold> {
        let (_, chunk) = &self.chunks[self.find(seq, near).ok()?];
        chunk.holds[(seq % CHUNK) as usize].as_ref()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, &Hold)> {
        self.chunks.iter().flat_map(|(chunk, held)| {
            let seqs = (0..CHUNK).map(move |i| chunk * CHUNK + i);
            seqs.zip(&held.holds).filter_map(|(seq, hold)| Some((seq, hold.as_ref()?)))
        })
    }

    /// What was held for this sequence before is replaced.
    #[inline]
    pub fn insert(&mut self, seq: u64, hold: Hold, near: &mut usize) {
        let at = self.find(seq, near).unwrap_or_else(|at| {
            self.chunks.insert(at, (seq / CHUNK, Box::default()));
            at
        });
        let (_, chunk) = &mut self.chunks[at];
        let before = chunk.holds[(seq % CHUNK) as usize].replace(hold);
        chunk.len += usize::from(before.is_none());
        self.len += usize::from(before.is_none());
    }

    #[inline]
    pub fn remove(&mut self, seq: u64, near: &mut usize) -> Option<Hold> {
        let at = self.find(seq, near).ok()?;
        let (_, chunk) = &mut self.chunks[at];
        let hold = chunk.holds[(seq % CHUNK) as usize].take()?;
        (chunk.len, self.len) = (chunk.len - 1, self.len - 1);
        if chunk.len == 0 {
            self.chunks.remove(at);
        }
        Some(hold)
    }

    /// The index of the chunk of a sequence, or where it would have to be.
    #[inline]
    fn find(&self, seq: u64, near: &mut usize) -> Result<usize, usize> {
        let wanted = seq / CHUNK;
        for at in [*near, *near + 1] {
            if self.chunks.get(at).is_some_and(|(chunk, _)| *chunk == wanted) {
                *near = at;
                return Ok(at);
            }
        }
        let found = self.chunks.binary_search_by_key(&wanted, |(chunk, _)| *chunk);
        *near = found.unwrap_or_else(|at| at);
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::AccountId;

    fn hold(amount: i64) -> Hold {
        let transfer = Transfer { from: AccountId(1), to: AccountId(9), amount };
        Hold { transfer, participants: [ShardId(1), ShardId(2)], named: amount % 2 == 0 }
    }

    /// No client gets there; but what an image says is only refused once it has been looked through.
    #[test]
    fn the_last_sequence_has_none_behind_it() {
        let (id, mut holds) =
            (TxnId { session: Session::new(ShardId(1), 1), seq: u64::MAX }, Holds::default());
        holds.insert(id, hold(1));
        assert!(holds.iter().eq([(id, &hold(1))]));
    }

    proptest! {
        /// They are a map, whatever the way to it: equal ones are equal in memory, and nothing empty is left behind.
        #[test]
        fn holds_are_a_map(
            steps in prop::collection::vec((1u64..4, 0u64..40, prop::option::weighted(0.6, 1i64..9)), 0..200)
        ) {
            let (mut holds, mut model, mut near) = (Holds::default(), BTreeMap::new(), 0);
            for (number, seq, amount) in steps {
                let id = TxnId { session: Session::new(ShardId(1), number), seq };
                match amount.map(hold) {
                    Some(hold) => {
                        holds.insert(id, hold.clone());
                        model.insert(id, hold);
                    }
                    None => {
                        let mut held = holds.take(id.session);
                        prop_assert!(!holds.has(id.session));
                        prop_assert_eq!(held.remove(seq, &mut near), model.remove(&id));
                        holds.put(id.session, held);
                    }
                }
                prop_assert_eq!((holds.len(), holds.is_empty()), (model.len(), model.is_empty()));
                prop_assert_eq!(holds.get(&id), model.get(&id));
                prop_assert_eq!(holds.has(id.session), model.keys().any(|other| other.session == id.session));
            }
            prop_assert!(holds.iter().eq(model.iter().map(|(id, hold)| (*id, hold))));
            let mut anew = Holds::default();
            model.into_iter().rev().for_each(|(id, hold)| anew.insert(id, hold));
            prop_assert_eq!(anew, holds);
        }
    }
}
