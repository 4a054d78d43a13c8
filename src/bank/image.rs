//! A shard's whole state at one slot as a string of bytes: what a snapshot holds and what is sent to a server that lags.
//!
//! ```text
//! balances   8 bytes each, little-endian, in order of accounts
//! the rest   for each session, each undecided transaction, the number of the next session and the trail: length u32,
//!            then serde with bincode
//! ```
//!
//! Equal states give equal bytes, so a piece of an image is the same whoever sends it. Whoever takes one in computes the
//! digest anew (P4): bytes that were altered on the way, or a state that never was, are refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bank::accounts::Accounts;
use crate::bank::apply::{Bank, digest_balances, digest_rest};
use crate::bank::holds::{Hold, Holds};
use crate::bank::session::SessionState;
use crate::codec;
use crate::config::Topology;
use crate::types::{Cut, NodeId, Rejoined, Session, ShardId, Slot, Transfer, TxnId, Value};

/// A consistent cut of one shard's state. It shares the accounts with the bank that it was taken from.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Image {
    slot: Slot,
    digest: u64,
    piece_bytes: u32,
    accounts: Accounts,
    rest: Arc<[u8]>,
}

/// What stands behind the balances, in the order of the variants.
#[derive(Serialize, Deserialize)]
enum Part {
    NextSession(u64),
    Trail(u64),
    Floor(ShardId, u64),
    Session(Session, SessionImage),
    Hold(TxnId, Hold),
    Member(NodeId, Rejoined),
}

/// One session as bytes; how wide its window is, each server knows.
#[derive(Serialize, Deserialize)]
pub(super) struct SessionImage {
    pub mark: u64,
    pub ring: Value,
    pub names: Vec<(u64, Transfer)>,
    pub beside: Vec<(u64, u8)>,
    pub closed: bool,
    pub naming: bool,
}

/// What a bank has beside its balances.
#[derive(Default)]
pub(super) struct Parts {
    pub trail: u64,
    pub next_session: u64,
    pub members: BTreeMap<NodeId, Rejoined>,
    pub floors: BTreeMap<ShardId, u64>,
    pub sessions: BTreeMap<Session, SessionState>,
    pub holds: Holds,
}

impl Parts {
    fn decode(mut rest: &[u8]) -> Result<Parts, String> {
        let mut parts = Parts::default();
        while let Some((bytes, behind)) = rest.split_first_chunk::<4>() {
            let bytes = u32::from_le_bytes(*bytes) as usize;
            let part = behind.get(..bytes).ok_or("it ends in the middle of a part")?;
            match codec::decode(part)? {
                Part::NextSession(number) => parts.next_session = number,
                Part::Trail(trail) => parts.trail = trail,
                Part::Floor(issuer, floor) => _ = parts.floors.insert(issuer, floor),
                Part::Session(session, image) => {
                    let state = SessionState::from_image(image).map_err(|e| format!("{session}: {e}"))?;
                    parts.sessions.insert(session, state);
                }
                Part::Hold(id, hold) => parts.holds.insert(id, hold),
                Part::Member(server, member) => _ = parts.members.insert(server, member),
            }
            rest = &behind[bytes..];
        }
        if parts.next_session == 0 || !rest.is_empty() {
            return Err("it ends too early".into());
        }
        Ok(parts)
    }
}

/// A guard for memory: no rest is ever as long.
const MAX_REST: u64 = 1 << 32;

impl Image {
    pub fn cut(&self) -> Cut {
        let bytes = (self.accounts.len() * 8 + self.rest.len()) as u64;
        Cut { slot: self.slot, digest: self.digest, bytes, piece_bytes: self.piece_bytes }
    }

    /// The `n`-th piece, counted from 0; empty beyond the last one.
    pub fn piece(&self, n: u64) -> Vec<u8> {
        let (start, size) = self.cut().piece(n);
        let mut out = Vec::with_capacity(size);
        let mut index = (start / 8) as usize;
        while out.len() < size && index < self.accounts.len() {
            let run = self.accounts.run(index);
            let run = &run[..run.len().min((size - out.len()) / 8)];
            run.iter().for_each(|account| out.extend_from_slice(&account.balance().to_le_bytes()));
            index += run.len();
        }
        if out.len() < size {
            let from = start as usize + out.len() - self.accounts.len() * 8;
            out.extend_from_slice(&self.rest[from..from + size - out.len()]);
        }
        out
    }
}

impl Bank {
    /// Bytes of an image that all balances take, whatever else there is.
    pub fn balances_bytes(&self) -> u64 {
        self.accounts.len() as u64 * 8
    }

    /// The state as it is now, in pieces of `piece_bytes`, a multiple of 8. Takes a reference count for every 128
    /// accounts, and a copy of all registers.
    pub fn image(&self, piece_bytes: u32) -> Image {
        assert!(piece_bytes > 0 && piece_bytes.is_multiple_of(8), "balances are not cut apart");
        let mut rest = Vec::new();
        let floors = self.floors.iter().map(|(issuer, floor)| Part::Floor(*issuer, *floor));
        let sessions = self.sessions.iter().map(|(session, state)| Part::Session(*session, state.image()));
        let holds = self.holds.iter().map(|(id, hold)| Part::Hold(id, hold.clone()));
        let members = self.members.iter().map(|(server, member)| Part::Member(*server, *member));
        let first = [Part::NextSession(self.next_session), Part::Trail(self.trail)].into_iter();
        for part in first.chain(floors).chain(sessions).chain(holds).chain(members) {
            let start = rest.len();
            rest.extend_from_slice(&[0; 4]);
            codec::encode(&part, &mut rest);
            let bytes = (rest.len() - start - 4) as u32;
            rest[start..start + 4].copy_from_slice(&bytes.to_le_bytes());
        }
        let (slot, digest, accounts) = (self.applied(), self.digest(), self.accounts.clone());
        Image { slot, digest, piece_bytes, accounts, rest: rest.into() }
    }
}

/// Computes the digest of an image anew, piece by piece, without keeping its balances.
#[derive(Debug)]
pub struct Verifier {
    cut: Cut,
    next_account: u64,
    /// Bytes of balances, and of everything, that are still to come.
    dense: usize,
    left: u64,
    digest: u64,
    rest: Vec<u8>,
}

impl Verifier {
    pub fn new(cut: Cut, topology: &Topology, shard: ShardId) -> Verifier {
        let next_account = *topology.accounts_of(shard).start();
        let (dense, left) = (accounts(topology, shard) * 8, cut.bytes);
        Verifier { cut, next_account, dense, left, digest: 0, rest: Vec::new() }
    }

    /// Takes in the next piece.
    ///
    /// # Errors
    ///
    /// It was the last one, and they are not the state that the digest stands for (P4).
    pub fn push(&mut self, piece: &[u8]) -> Result<(), String> {
        let (dense, rest) = piece.split_at(piece.len().min(self.dense));
        self.digest = self.digest.wrapping_add(digest_balances(self.next_account, numbers(dense)));
        self.next_account += dense.len() as u64 / 8;
        self.dense -= dense.len();
        self.rest.extend_from_slice(rest);
        self.left -= piece.len() as u64;
        if self.left > 0 {
            return Ok(());
        }
        let Parts { trail, next_session, members, floors, sessions, holds } = Parts::decode(&self.rest)?;
        let rest = digest_rest(trail, next_session, &members, &floors, &sessions, &holds);
        self.cut.check(self.digest.wrapping_add(rest))
    }
}

/// An image that comes in piece by piece.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Incoming {
    cut: Cut,
    bytes: Vec<u8>,
}

impl Incoming {
    /// # Errors
    ///
    /// No shard with so many accounts has so short an image, or one so long.
    pub fn new(cut: Cut, topology: &Topology, shard: ShardId) -> Result<Incoming, String> {
        let accounts = accounts(topology, shard) as u64;
        if cut.bytes < accounts * 8 || cut.bytes > accounts * 8 + MAX_REST {
            return Err(format!("an image of {} bytes for {accounts} accounts", cut.bytes));
        }
        if cut.piece_bytes == 0 || !cut.piece_bytes.is_multiple_of(8) {
            return Err(format!("an image in pieces of {} bytes", cut.piece_bytes));
        }
        Ok(Incoming { cut, bytes: Vec::new() })
    }

    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// The piece that is wanted next, `None` once it is complete.
    pub fn wanted(&self) -> Option<u64> {
        let have = self.bytes.len() as u64;
        (have < self.cut.bytes).then(|| have / u64::from(self.cut.piece_bytes))
    }

    /// Takes in the piece that is wanted. `false` if it is too long or too short for that.
    pub fn push(&mut self, piece: &[u8]) -> bool {
        let fits = self.wanted().is_some_and(|n| self.cut.piece(n).1 == piece.len());
        if fits {
            self.bytes.extend_from_slice(piece);
        }
        fits
    }

    /// The bank that a complete image describes.
    ///
    /// # Errors
    ///
    /// The bytes describe no bank of this shard, or not the one whose digest was announced (P4).
    pub fn finish(self, topology: Topology, shard: ShardId) -> Result<Bank, String> {
        let Incoming { cut, bytes } = self;
        if bytes.len() as u64 != cut.bytes {
            return Err(format!("{} bytes of an image of {}", bytes.len(), cut.bytes));
        }
        let count = accounts(&topology, shard);
        let (dense, rest) = bytes.split_at(count * 8);
        let accounts = Accounts::collect(count, numbers(dense)).ok_or("a balance beyond all money")?;
        let bank = Bank::from_parts(topology, shard, cut.slot, accounts, Parts::decode(rest)?)?;
        cut.check(bank.digest())?;
        Ok(bank)
    }
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("chunks of eight bytes")))
}

fn accounts(topology: &Topology, shard: ShardId) -> usize {
    let range = topology.accounts_of(shard);
    (range.end() + 1 - range.start()) as usize
}

#[cfg(test)]
mod tests;
