//! The list of committed transactions on its way to the log (B3).
//!
//! What a slot brought about is known when it is applied. Up to each agreed slot it becomes one record of the log, once a
//! majority has confirmed the state there (P4): what a server wrote that had computed otherwise would outlive its mistake. It
//! is written together with other records and never synced for its own sake. A crash before that loses nothing, for a
//! restart applies these slots again; behind a snapshot it would not, so a snapshot waits until the history before it is
//! written.

use std::collections::VecDeque;

use crate::config::limits::{RECORD_BYTES, VALUE_BYTES};
use crate::types::{Record, Slot, Value};

/// Bytes after which a run of slots ends before its agreed slot.
const LONG: usize = 64 * 1024;

/// What a run of slots brought about: see [`crate::bank::history`].
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Run {
    pub from: Slot,
    pub to: Slot,
    pub bytes: Vec<u8>,
}

impl Run {
    /// The records that hold it, no larger than any other.
    fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let parts = self.bytes.len().div_ceil(VALUE_BYTES).max(1);
        (0..parts).map(move |n| {
            let end = self.bytes.len().min((n + 1) * VALUE_BYTES);
            let bytes = Value::from_slice(&self.bytes[n * VALUE_BYTES..end]);
            Record::History { from: self.from, to: self.to, more: (parts - n - 1) as u16, bytes }
        })
    }

    fn cost(&self) -> u64 {
        self.bytes.len() as u64 + RECORD_BYTES * self.bytes.len().div_ceil(VALUE_BYTES).max(1) as u64
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct History {
    digest_slots: u64,
    /// The first slot of the run that is not at its end, and what it brought so far.
    from: Slot,
    bytes: Vec<u8>,
    /// Runs that are not written yet.
    closed: VecDeque<Run>,
    /// For how many of these the log has room for certain.
    secured: usize,
}

impl History {
    /// Everything up to `noted` is in the log, or will never be.
    pub fn new(noted: Slot, digest_slots: u64) -> History {
        let (bytes, closed) = (Vec::new(), VecDeque::new());
        History { digest_slots, from: noted.next(), bytes, closed, secured: 0 }
    }

    /// The next slot has been applied.
    pub fn applied(&mut self, slot: Slot, bytes: &[u8]) {
        if slot < self.from {
            return;
        }
        self.bytes.extend_from_slice(bytes);
        if slot.0.is_multiple_of(self.digest_slots) || self.bytes.len() >= LONG {
            self.close(slot);
        }
    }

    fn close(&mut self, to: Slot) {
        if self.from <= to {
            let bytes = std::mem::take(&mut self.bytes);
            self.closed.push_back(Run { from: self.from, to, bytes });
            self.from = to.next();
        }
    }

    /// From here on the state is that of a snapshot of `slot`; what led there nobody will say here.
    pub fn jump(&mut self, applied: Slot, slot: Slot) {
        self.close(applied);
        self.from = slot.next();
    }

    /// Bytes of records that wait.
    pub fn demand(&self) -> u64 {
        self.closed.iter().map(Run::cost).sum()
    }

    /// Whether the log has room for all that waits now.
    pub fn secure(&mut self, room: bool) {
        self.secured = if room { self.closed.len() } else { 0 };
    }

    /// Hands out what is confirmed and certainly has room.
    pub fn write(&mut self, confirmed: Slot, records: &mut Vec<Record>) {
        let ready = self.closed.iter().take(self.secured).take_while(|run| run.to <= confirmed).count();
        self.secured -= ready;
        for run in self.closed.drain(..ready) {
            records.extend(run.records());
        }
    }

    /// Up to here it has been handed out.
    pub fn written(&self) -> Slot {
        let next = self.closed.front().map_or(self.from, |run| run.from);
        Slot(next.0 - 1)
    }

    /// What has not been handed out, up to the slot that was applied last.
    pub fn unwritten(&self, applied: Slot) -> impl Iterator<Item = Run> + '_ {
        let open = Run { from: self.from, to: applied, bytes: self.bytes.clone() };
        self.closed.iter().cloned().chain([open]).filter(|run| run.from <= run.to)
    }
}
