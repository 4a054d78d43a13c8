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

    /// Forgets everything up to `slot`, which a snapshot stands for. Entries above stay as they are (P2).
    pub fn jump(&mut self, slot: Slot) {
        while self.floor < slot
            && let Some((_, value)) = self.entries.pop_front()
        {
            self.bytes -= value.len();
            self.floor = self.floor.next();
        }
        self.floor = self.floor.max(slot);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::types::NodeId;

    #[derive(Clone, Debug)]
    enum Step {
        /// Overwrites the n-th entry in memory, or appends.
        Put(usize, usize),
        /// Decides up to the n-th entry, and keeps so many bytes.
        Trim(usize, usize),
        Slice(u64, u64, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0usize..12, 0usize..9).prop_map(|(n, len)| Step::Put(n, len * 25)),
            1 => (0usize..12, 0usize..12).prop_map(|(n, keep)| Step::Trim(n, keep * 64)),
            1 => (0u64..20, 0u64..20, 0usize..9).prop_map(|(a, b, bytes)| Step::Slice(a, b, bytes * 50)),
        ]
    }

    proptest! {
        /// The log is a table from slots to votes, of which the lowest, decided ones are forgotten to save memory: as many
        /// as needed and no more, and no undecided one ever (P2).
        #[test]
        fn a_log_is_a_table_that_forgets_what_is_decided(steps in prop::collection::vec(step(), 1..60)) {
            let first = Slot(5);
            let (mut log, mut table) = (Log::new(first), BTreeMap::new());
            let mut floor = first;
            for (round, step) in (1..).zip(steps) {
                match step {
                    Step::Put(n, len) => {
                        let slot = Slot(floor.0 + 1 + n.min(table.len()) as u64);
                        let vote = (Ballot::new(round, NodeId(1)), Value::from_slice(&vec![round as u8; len]));
                        log.put(slot, vote.0, vote.1.clone());
                        table.insert(slot, vote);
                    }
                    Step::Trim(n, keep) => {
                        let decided = Slot(floor.0 + n.min(table.len()) as u64);
                        log.trim(decided, keep);
                        let cost = |table: &BTreeMap<Slot, (Ballot, Value)>| -> usize {
                            table.values().map(|(_, value)| value.len() + 64).sum()
                        };
                        while floor < decided && cost(&table) > keep {
                            floor = floor.next();
                            table.remove(&floor);
                        }
                    }
                    Step::Slice(a, b, bytes) => {
                        let (mut expected, mut full) = (Vec::new(), 0);
                        for slot in (a..=b).map(Slot) {
                            let Some(vote) = table.get(&slot) else { break };
                            full += vote.1.len();
                            if full > bytes && !expected.is_empty() {
                                break;
                            }
                            expected.push(vote.clone());
                        }
                        prop_assert_eq!(log.slice(Slot(a), Slot(b), bytes), expected);
                    }
                }
                prop_assert_eq!(log.floor(), floor);
                prop_assert_eq!(log.last(), Slot(floor.0 + table.len() as u64));
                for slot in (0..floor.0 + 20).map(Slot) {
                    prop_assert_eq!(log.get(slot), table.get(&slot));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "P2: slot 3 would leave a gap")]
    fn a_gap_stops_the_server() {
        let mut log = Log::new(Slot(1));
        log.put(Slot(3), Ballot::ZERO, Value::noop());
    }
}
