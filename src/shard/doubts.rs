//! When a leader finishes what stays in doubt (T4): what was prepared together is watched together, until it is due.

use std::collections::BTreeMap;

use crate::bank::command::Range;
use crate::types::{Time, TxnId};

/// Runs of transactions that a leader holds an undecided YES of. No transaction is in two of them.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub(super) struct Doubts {
    /// By its first transaction.
    runs: BTreeMap<TxnId, Run>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Run {
    count: u32,
    /// How many of them are undecided still.
    left: u32,
    /// When to look after these.
    at: Time,
}

impl Doubts {
    pub fn clear(&mut self) {
        self.runs.clear();
    }

    /// Transactions that became in doubt, and when to look after them.
    pub fn add(&mut self, range: Range, at: Time) {
        let run = Run { count: range.count, left: range.count, at };
        self.runs.insert(range.id(range.first), run);
    }

    /// Transactions that are in doubt no longer.
    pub fn settle(&mut self, range: Range) {
        let end = range.seqs().end;
        let (first, last) = (range.first, end - 1);
        let before = self.runs.range(..=range.id(first)).next_back().map(|(first, _)| *first);
        let from = before.filter(|before| before.session == range.session).unwrap_or(range.id(first));
        let mut over = Vec::new();
        for (begin, run) in self.runs.range_mut(from..=range.id(last)) {
            let run_end = begin.seq + u64::from(run.count);
            run.left -= run_end.min(end).saturating_sub(begin.seq.max(first)) as u32;
            if run.left == 0 {
                over.push(*begin);
            }
        }
        over.iter().for_each(|begin| _ = self.runs.remove(begin));
    }

    pub fn next_deadline(&self) -> Option<Time> {
        self.runs.values().map(|run| run.at).min()
    }

    /// Takes out what is to be looked after now. Some of these may be decided.
    pub fn due(&mut self, now: Time) -> Vec<Range> {
        let mut due = Vec::new();
        self.runs.retain(|id, run| {
            let waits = run.at > now;
            if !waits {
                due.push(Range { session: id.session, first: id.seq, count: run.count });
            }
            waits
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Session, ShardId};

    proptest! {
        /// Whatever is not settled falls due, at its time and not before; what is settled as a whole, never.
        #[test]
        fn what_is_not_settled_falls_due(
            sizes in prop::collection::vec((1u32..6, 1u64..9), 1..12),
            settled in prop::collection::vec((1u64..40, 1u32..12), 0..12),
        ) {
            let session = Session::new(ShardId(1), 1);
            let (mut doubts, mut model, mut first) = (Doubts::default(), BTreeMap::new(), 1);
            for (count, at) in sizes {
                let range = Range { session, first, count };
                doubts.add(range, Time(at));
                range.seqs().for_each(|seq| _ = model.insert(seq, (at, range.first)));
                // Not all runs touch.
                first += u64::from(count) + at % 2;
            }
            for (first, count) in settled {
                // Each is settled once.
                for seq in first..first + u64::from(count) {
                    if model.remove(&seq).is_some() {
                        doubts.settle(Range { session, first: seq, count: 1 });
                    }
                }
            }
            for now in 0..10 {
                prop_assert_eq!(doubts.next_deadline(), model.values().map(|(at, _)| Time(*at)).min());
                let due: Vec<u64> = doubts.due(Time(now)).into_iter().flat_map(Range::seqs).collect();
                let expected: Vec<u64> =
                    model.iter().filter(|(_, (at, _))| *at <= now).map(|(seq, _)| *seq).collect();
                prop_assert!(expected.iter().all(|seq| due.contains(seq)), "{:?} of {:?}", due, expected);
                model.retain(|_, (at, _)| *at > now);
            }
            prop_assert_eq!(doubts, Doubts::default());
        }
    }

    #[test]
    fn a_block_of_outcomes_settles_several_runs_and_parts_of_them() {
        let session = Session::new(ShardId(1), 1);
        let range = |first, count| Range { session, first, count };
        let mut doubts = Doubts::default();
        [range(1, 4), range(6, 2), range(8, 3)].into_iter().for_each(|run| doubts.add(run, Time(5)));
        // Of the last one only the first.
        doubts.settle(range(3, 2));
        doubts.settle(range(6, 3));
        assert_eq!(doubts.clone().due(Time(5)), [range(1, 4), range(8, 3)]);
        doubts.settle(range(9, 2));
        doubts.settle(range(1, 2));
        assert_eq!(doubts, Doubts::default());
        // Another session has nothing to do with it.
        doubts.add(range(1, 4), Time(5));
        doubts.settle(Range { session: Session::new(ShardId(1), 2), first: 1, count: 4 });
        assert_eq!(doubts.next_deadline(), Some(Time(5)));
    }
}
