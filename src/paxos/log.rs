//! The part of the log that is kept in memory: every undecided vote, and the last decided entries for servers that lag
//! a little. Older entries are read from disk.

use std::collections::VecDeque;

use crate::types::{Ballot, Slot, Value};

/// Consecutive entries above `floor`. An entry is a vote until its slot is decided.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Log {
    floor: Slot,
    entries: VecDeque<(Ballot, Value)>,
    bytes: usize,
}

impl Log {
    /// An empty tail above `floor`.
    pub fn new(floor: Slot) -> Log {
        Log { floor, entries: VecDeque::new(), bytes: 0 }
    }

    /// Entries up to this slot are not in memory.
    pub fn floor(&self) -> Slot {
        self.floor
    }

    /// The last slot for which there is an entry.
    pub fn last(&self) -> Slot {
        Slot(self.floor.0 + self.entries.len() as u64)
    }

    pub fn get(&self, slot: Slot) -> Option<&(Ballot, Value)> {
        let index = slot.0.checked_sub(self.floor.0 + 1)?;
        self.entries.get(index as usize)
    }

    /// Overwrites the entry of one slot, or appends right after the last. Entries above stay as they are (P2).
    pub fn put(&mut self, slot: Slot, ballot: Ballot, value: Value) {
        self.bytes += value.len();
        if slot == self.last().next() {
            self.entries.push_back((ballot, value));
            return;
        }
        assert!(slot > self.floor && slot <= self.last(), "P2: slot {slot} would leave a gap in the log");
        let index = (slot.0 - self.floor.0 - 1) as usize;
        self.bytes -= self.entries[index].1.len();
        self.entries[index] = (ballot, value);
    }

    /// Entries from `first` to at most `last`, until `max_bytes` are full; at least one if it is in memory.
    pub fn slice(&self, first: Slot, last: Slot, max_bytes: usize) -> Vec<(Ballot, Value)> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        let mut slot = first;
        while slot <= last
            && let Some((ballot, value)) = self.get(slot)
        {
            bytes += value.len();
            if bytes > max_bytes && !taken.is_empty() {
                break;
            }
            taken.push((*ballot, value.clone()));
            slot = slot.next();
        }
        taken
    }

    /// Forgets the oldest entries up to `decided` while more than `keep_bytes` (or a matching number of tiny ones)
    /// would stay.
    pub fn trim(&mut self, decided: Slot, keep_bytes: usize) {
        // An empty value still costs an entry; 64 bytes is about what one takes.
        while self.floor < decided && self.bytes + 64 * self.entries.len() > keep_bytes {
            let (_, value) = self.entries.pop_front().expect("P2: entries reach up to the decided slot");
            self.bytes -= value.len();
            self.floor = self.floor.next();
        }
    }
}
