//! The committed transactions of one server, in log order, from its disk: `log S`, `bank log DIR`.

use serde::{Deserialize, Serialize};

use crate::bank::{Committed, history};
use crate::shard::Shard;
use crate::storage::{Audit, Disk, Entry, StorageError, Wal};
use crate::types::Slot;

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

/// The list of a server that runs, up to a slot, a segment at a time.
pub struct Replay {
    audit: Audit,
    to: Slot,
    listing: Listing,
}

impl Replay {
    pub fn new<D: Disk>(wal: &Wal<D>, to: Slot) -> Replay {
        Replay { audit: wal.audit(), to, listing: Listing::default() }
    }

    /// Goes on; the list once it is complete.
    ///
    /// # Errors
    ///
    /// The disk cannot be read, or is damaged.
    pub fn advance<D: Disk>(&mut self, wal: &Wal<D>, shard: &Shard) -> Result<Option<Listing>, StorageError> {
        if self.audit.covered() < self.to
            && let Some(entries) = wal.audit_on(&mut self.audit)?
        {
            self.listing.extend(entries)?;
            return Ok(None);
        }
        // The rest is on its way to the log.
        for run in shard.unwritten_history() {
            if run.from <= self.audit.covered() {
                continue;
            }
            let gap = self.audit.covered().next();
            if gap < run.from {
                self.listing.gap(gap, Slot(run.from.0 - 1));
            }
            let values = self.audit.take_values(run.from, run.to);
            let values = values.ok_or_else(|| damaged(run.from, "a value is missing".into()))?;
            self.listing.extend(vec![Entry::History { from: run.from, values, bytes: run.bytes }])?;
        }
        let mut listing = std::mem::take(&mut self.listing);
        listing.committed.retain(|committed| committed.slot <= self.to);
        Ok(Some(listing))
    }
}
