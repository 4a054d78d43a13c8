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
/// Bytes that wait at most. Who cannot hear a majority for so long, and applies all the same, will not list what it did.
const WAITING: u64 = 64 * 1024 * 1024;

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
            while self.demand() > WAITING {
                self.closed.pop_front();
            }
        }
    }

    /// From here on the state is that of a snapshot of `slot`, which says nothing about the one before. So what is not
    /// confirmed yet never will be: nobody will say here what led to the snapshot.
    pub fn jump(&mut self, confirmed: Slot, slot: Slot) {
        self.closed.retain(|run| run.to <= confirmed);
        self.bytes.clear();
        self.from = slot.next();
    }

    /// Bytes of records that wait.
    pub fn demand(&self) -> u64 {
        self.closed.iter().map(Run::cost).sum()
    }

    /// The log has room for all that waits now, or [`History::write`] will be told how much there is.
    pub fn secure(&mut self) {
        self.secured = self.closed.len();
    }

    /// Hands out what is confirmed and certainly has room: on a full disk, no more than `room` bytes.
    pub fn write(&mut self, confirmed: Slot, mut room: u64, records: &mut Vec<Record>) {
        let fits = |run: &&Run| {
            let left = room.checked_sub(run.cost());
            room = left.unwrap_or(0);
            left.is_some()
        };
        let confirmed = self.closed.iter().take(self.secured).take_while(|run| run.to <= confirmed);
        let ready = confirmed.take_while(fits).count();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn written(history: &mut History, confirmed: u64) -> Vec<(u64, u64)> {
        let mut records = Vec::new();
        history.secure();
        history.write(Slot(confirmed), u64::MAX, &mut records);
        let run = |record| match record {
            Record::History { from, to, more: 0, .. } => (from.0, to.0),
            other => panic!("{other:?}"),
        };
        records.into_iter().map(run).collect()
    }

    fn apply(history: &mut History, slots: std::ops::RangeInclusive<u64>) {
        slots.for_each(|slot| history.applied(Slot(slot), &[slot as u8]));
    }

    /// After a jump a later confirmation speaks of another state than the one that was computed here.
    #[test]
    fn what_was_not_confirmed_before_a_snapshot_never_is() {
        let mut history = History::new(Slot(2), 4);
        apply(&mut history, 3..=14);
        assert_eq!(written(&mut history, 4), [(3, 4)]);
        history.jump(Slot(8), Slot(40));
        apply(&mut history, 41..=45);
        assert_eq!(written(&mut history, 44), [(5, 8), (41, 44)]);
        assert_eq!(history.written(), Slot(44));
        let left: Vec<_> = history.unwritten(Slot(45)).map(|run| (run.from.0, run.to.0, run.bytes)).collect();
        assert_eq!(left, [(45, 45, vec![45])]);
    }

    /// A full disk gets what fits, in order.
    #[test]
    fn no_more_is_written_than_there_is_room_for() {
        let mut history = History::new(Slot::ZERO, 4);
        apply(&mut history, 1..=12);
        history.secure();
        let cost = history.demand() / 3;
        for (room, written) in [(cost - 1, 0), (cost, 4), (2 * cost - 1, 8), (2 * cost, 12)] {
            let mut records = Vec::new();
            history.write(Slot(12), room, &mut records);
            assert_eq!(history.written(), Slot(written), "{room}");
        }
    }

    #[test]
    fn what_waits_is_bounded_and_the_oldest_goes() {
        let mut history = History::new(Slot::ZERO, 64);
        let long = vec![7; 1024 * 1024];
        for slot in 1..=100 {
            history.applied(Slot(slot), &long);
        }
        assert!(history.demand() <= WAITING);
        assert!(history.unwritten(Slot(100)).next().is_some_and(|run| run.from.0 > 30));
        assert_eq!(history.unwritten(Slot(100)).last().map(|run| run.to), Some(Slot(100)));
    }
}
