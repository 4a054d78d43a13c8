//! A server's log as far as its time matters: what it holds, how long its records are, and what there is to be done when a
//! slot is applied. Its bytes are written nowhere.

use std::io;

use crate::bank::command::{self, Command};
use crate::bench::predict::work::{APPLIED, BLOCK, PREPARED, SETTLED, Work};
use crate::storage::{CommitStats, Pieces, StableLog};
use crate::types::{Ballot, Cut, Record, Slot, Value};

/// A record is a header of so many bytes and a payload, padded.
const HEADER: u64 = 56;

#[derive(Default)]
pub struct CountedLog {
    /// Of slot 1, 2, …
    entries: Vec<(Ballot, Value)>,
    /// Bytes that were appended since this was last asked.
    bytes: u64,
    syncs: u32,
}

impl CountedLog {
    /// Bytes and groups that were written since the last time.
    pub fn take_written(&mut self) -> (u64, u32) {
        (std::mem::take(&mut self.bytes), std::mem::take(&mut self.syncs))
    }

    /// What it is to apply the slots behind `from` up to `to`.
    pub fn count(&self, from: Slot, to: Slot, work: &mut Work) {
        for (_, value) in &self.entries[from.0 as usize..to.0 as usize] {
            count_blocks(value, |block, transactions| {
                work.add(BLOCK, 1);
                let kind = match block {
                    Command::Transfers { .. } => APPLIED,
                    Command::Prepare { .. } => PREPARED,
                    Command::Outcome { .. } => SETTLED,
                    _ => return,
                };
                work.add(kind, transactions);
            });
        }
    }

    fn put(&mut self, slot: Slot, ballot: Ballot, value: &Value) {
        let index = slot.0 as usize - 1;
        assert!(index <= self.entries.len(), "P2: slot {slot} would leave a gap in the log");
        match self.entries.get_mut(index) {
            Some(entry) => *entry = (ballot, value.clone()),
            None => self.entries.push((ballot, value.clone())),
        }
    }
}

/// Calls `told` with each block and the number of transactions that it is about.
pub fn count_blocks(value: &Value, mut told: impl FnMut(&Command<'_>, u32)) {
    for block in command::blocks(&value.0).flatten() {
        told(&block, block.range().map_or(0, |range| range.count));
    }
}

impl StableLog for CountedLog {
    fn append(&mut self, record: &Record) {
        let payload = match record {
            Record::Accept { slot, ballot, value } | Record::Learn { slot, ballot, value } => {
                self.put(*slot, *ballot, value);
                value.len()
            }
            Record::History { bytes, .. } => bytes.len(),
            Record::Promise(_) | Record::Decided(_) | Record::Vouch(_) => 0,
        };
        self.bytes += HEADER + (payload as u64).next_multiple_of(8);
    }

    fn set_decided(&mut self, _: Slot) {}

    fn secure(&mut self, _: u64, _: bool) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn commit(&mut self) -> io::Result<CommitStats> {
        self.syncs += 1;
        Ok(CommitStats { bytes: self.bytes, syncs: 1, group: 0 })
    }

    fn read(&self, from: Slot, max_bytes: usize) -> io::Result<Vec<(Slot, Ballot, Value)>> {
        let mut bytes = 0;
        let entries = self.entries.iter().enumerate().skip(from.0 as usize - 1);
        let entries = entries.take_while(|(_, (_, value))| {
            let fits = bytes == 0 || bytes + value.len() <= max_bytes;
            bytes += value.len().max(1);
            fits
        });
        Ok(entries.map(|(index, (ballot, value))| (Slot(index as u64 + 1), *ballot, value.clone())).collect())
    }

    fn writes_snapshot(&self) -> bool {
        false
    }

    /// There is no space for one, as it were; see the limits that servers are given here.
    fn begin_snapshot(&mut self, _: Box<dyn Pieces>, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn snapshot(&self) -> Option<Cut> {
        None
    }

    fn read_piece(&mut self, _: Slot, _: u64) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn distrust_snapshot(&mut self, _: Slot) {}
}
