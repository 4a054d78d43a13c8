//! The committed transactions of one server, in log order, from its disk: `log S`, `bank log DIR`.

use serde::{Deserialize, Serialize};

use crate::bank::{Committed, Verifier, history};
use crate::shard::Shard;
use crate::storage::{Audit, Disk, Entry, Identity, StorageError, Wal, snapshot_pieces};
use crate::types::{Cut, Slot};

/// Part of the list.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Listing {
    pub committed: Vec<Committed>,
    /// Runs of slots of which nothing is known any more.
    pub gaps: Vec<(Slot, Slot)>,
}

impl Listing {
    /// Takes in what the log says next.
    ///
    /// # Errors
    ///
    /// What it says of a run of slots does not fit their values.
    pub fn extend(&mut self, entries: Vec<Entry>) -> Result<(), StorageError> {
        for entry in entries {
            match entry {
                Entry::Gap { from, to } => self.gap(from, to),
                Entry::History { from, values, bytes } => {
                    let decoded = history::decode(from, &values, &bytes);
                    self.committed.extend(decoded.map_err(|what| damaged(from, what))?);
                }
            }
        }
        Ok(())
    }

    /// Takes in the part that follows.
    pub fn append(&mut self, mut part: Listing) {
        self.committed.append(&mut part.committed);
        part.gaps.into_iter().for_each(|(from, to)| self.gap(from, to));
    }

    fn gap(&mut self, from: Slot, to: Slot) {
        match self.gaps.last_mut() {
            Some((_, last)) if last.next() == from => *last = to,
            _ => self.gaps.push((from, to)),
        }
    }
}

fn damaged(from: Slot, what: String) -> StorageError {
    let file = format!("the history of slot {from} and later ones");
    StorageError::Damaged { file, offset: None, what }
}

/// Computes the digest of a snapshot on disk anew.
///
/// # Errors
///
/// It cannot be read, or what it holds is not the state that its digest stands for (P4).
pub fn check_snapshot<D: Disk>(disk: &D, identity: &Identity, cut: Cut) -> Result<(), StorageError> {
    let file = || format!("the snapshot of slot {}", cut.slot);
    let shard = identity.topology.shard_of_server(identity.server);
    let mut verifier = Verifier::new(cut, &identity.topology, shard);
    for piece in snapshot_pieces(disk, identity, cut.slot)? {
        let io = |source| StorageError::Io { file: file(), doing: "read it", source };
        let damaged = |what| StorageError::Damaged { file: file(), offset: None, what };
        verifier.push(&piece.map_err(io)?).map_err(damaged)?;
    }
    Ok(())
}

/// The list of a server that runs, up to a slot, a segment at a time.
pub struct Replay {
    audit: Audit,
    to: Slot,
}

impl Replay {
    pub fn new<D: Disk>(wal: &Wal<D>, to: Slot) -> Replay {
        Replay { audit: wal.audit(), to }
    }

    /// The next part of the list, and whether it is the last one.
    ///
    /// # Errors
    ///
    /// The disk cannot be read, or is damaged.
    pub fn advance<D: Disk>(&mut self, wal: &Wal<D>, shard: &Shard) -> Result<(Listing, bool), StorageError> {
        let mut listing = Listing::default();
        let on_disk = if self.audit.covered() < self.to { wal.audit_on(&mut self.audit)? } else { None };
        let last = on_disk.is_none();
        match on_disk {
            Some(entries) => listing.extend(entries)?,
            // The rest is on its way to the log.
            None => self.unwritten(shard, &mut listing)?,
        }
        listing.committed.retain(|committed| committed.slot <= self.to);
        Ok((listing, last))
    }

    fn unwritten(&mut self, shard: &Shard, listing: &mut Listing) -> Result<(), StorageError> {
        for run in shard.unwritten_history() {
            let covered = self.audit.covered();
            // Beyond what is asked for, values may be younger than what was read of the log.
            if run.from <= covered || covered >= self.to {
                continue;
            }
            if covered.next() < run.from {
                listing.gap(covered.next(), Slot(run.from.0 - 1));
            }
            match self.audit.take_values(run.from, run.to) {
                Some(values) => {
                    listing.extend(vec![Entry::History { from: run.from, values, bytes: run.bytes }])?;
                }
                // Gone with the log in front of another server's snapshot.
                None => listing.gap(run.from, run.to),
            }
        }
        if self.audit.covered() < self.to {
            listing.gap(self.audit.covered().next(), self.to);
        }
        Ok(())
    }
}
