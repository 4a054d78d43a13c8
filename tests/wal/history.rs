//! Random histories of one server, with random failures and power cuts, against a model.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

/// What the log must say, kept beside it: the reference for random histories.
#[derive(Clone, Default, PartialEq, Debug)]
struct Model {
    promised: Ballot,
    explicit: Slot,
    hinted: Slot,
    values: BTreeMap<Slot, (Ballot, Value)>,
}

impl Model {
    fn note(&mut self, record: &Record) {
        match record {
            Record::Promise(ballot) => self.promised = self.promised.max(*ballot),
            Record::Accept { slot, ballot, value } => {
                self.promised = self.promised.max(*ballot);
                self.values.insert(*slot, (*ballot, value.clone()));
            }
            Record::Learn { slot, ballot, value } => {
                self.values.insert(*slot, (*ballot, value.clone()));
                if *slot == self.decided().next() {
                    self.explicit = *slot;
                }
            }
            Record::Decided(slot) | Record::History { to: slot, .. } => {
                self.explicit = self.explicit.max(*slot)
            }
            Record::Vouch(_) => {}
        }
    }

    fn decided(&self) -> Slot {
        self.explicit.max(self.hinted)
    }

    fn check(&self, wal: &Wal<MemDisk>, recovered: &Recovered) -> Result<(), TestCaseError> {
        prop_assert_eq!(recovered.promised, self.promised);
        prop_assert!(recovered.decided >= self.explicit && recovered.decided <= self.decided());
        let values: Vec<_> = self.values.iter().map(|(s, (b, v))| (*s, *b, v.clone())).collect();
        let read = wal.read(Slot(1), LIMIT).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(&read, &values);
        let votes: Vec<_> = values.into_iter().filter(|(s, ..)| *s > recovered.decided).collect();
        prop_assert_eq!(&recovered.votes, &votes);
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Promise(u64),
    /// How far back from the first free slot (as the ballot may be new), and the length.
    Accept(u64, u64, usize),
    Learn(usize),
    Decide(u64),
    Hint(u64),
    Commit,
    Prepare,
    /// Fails the n-th write or sync from here on, then takes the power away with these decisions.
    Crash {
        fail: Option<(bool, u64)>,
        keep: Vec<u64>,
        power: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (1u64..20).prop_map(Step::Promise),
        8 => (0u64..4, 1u64..20, 0usize..500).prop_map(|(back, round, len)| Step::Accept(back, round, len)),
        2 => (0usize..200).prop_map(Step::Learn),
        2 => (0u64..4).prop_map(Step::Decide),
        2 => (0u64..4).prop_map(Step::Hint),
        6 => Just(Step::Commit),
        2 => Just(Step::Prepare),
        1 => (
            proptest::option::of((any::<bool>(), 1u64..6)),
            proptest::collection::vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 1..12),
            any::<bool>(),
        )
            .prop_map(|(fail, keep, power)| Step::Crash { fail, keep, power }),
    ]
}

/// One server's history: the log, what it confirmed, and what it was given since.
struct History {
    disk: MemDisk,
    wal: Wal<MemDisk>,
    confirmed: Model,
    given: Model,
    byte: u8,
    failed: bool,
    crash: Option<(Vec<u64>, bool)>,
    hits: Hits,
}

/// What became of commits that failed: cut as torn, found whole, gone without a trace.
#[derive(Clone, Copy, Default, Debug)]
struct Hits {
    torn: u32,
    finished: u32,
    gone: u32,
}

impl History {
    fn append(&mut self, record: Record) {
        self.given.note(&record);
        self.wal.append(&record);
    }

    fn next(&mut self) -> (u64, u8) {
        self.byte = self.byte.wrapping_add(1);
        (self.given.values.len() as u64 + 1, self.byte)
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let (free, byte) = self.next();
        match step {
            Step::Promise(round) => self.append(Record::Promise(ballot(round))),
            Step::Accept(back, round, len) => {
                let slot = free.saturating_sub(back).max(self.given.decided().0 + 1).min(free);
                self.append(accept(slot, round, byte, len));
            }
            Step::Learn(len) => self.append(learn(self.given.decided().0 + 1, 1, byte, len)),
            Step::Decide(back) => self.append(Record::Decided(Slot((free - 1).saturating_sub(back)))),
            Step::Hint(back) => {
                let slot = Slot((free - 1).saturating_sub(back));
                self.wal.set_decided(slot);
                self.given.hinted = self.given.hinted.max(slot);
            }
            Step::Commit => match self.wal.commit() {
                Ok(_) => self.confirmed = self.given.clone(),
                Err(_) => self.failed = true,
            },
            Step::Prepare => self.failed |= self.wal.prepare_ahead().is_err(),
            Step::Crash { fail, keep, power } => {
                match fail {
                    Some((true, n)) => self.disk.fail_sync(n),
                    Some((false, n)) => self.disk.fail_write(n),
                    None => return self.restart(&keep, power),
                }
                self.crash = Some((keep, power));
            }
        }
        if self.failed {
            let (keep, power) = self.crash.take().unwrap_or((vec![0], true));
            self.restart(&keep, power)?;
        }
        Ok(())
    }

    fn restart(&mut self, keep: &[u64], power: bool) -> Result<(), TestCaseError> {
        if power {
            let mut decisions = keep.iter().cycle().copied();
            self.disk.crash(|_| match decisions.next().unwrap_or(0) {
                0 => Kept::Lost,
                u64::MAX => Kept::Whole,
                mask => Kept::Sectors(mask),
            });
        } else {
            self.disk.kill();
        }
        let opened = Wal::open(self.disk.clone(), expected());
        let (wal, recovered) = opened.map_err(|e| TestCaseError::fail(e.to_string()))?;
        // All that was confirmed; of what was not, all or nothing, and only if a commit was begun.
        let changed = self.failed && self.given.values != self.confirmed.values;
        if self.failed && self.given.check(&wal, &recovered).is_ok() {
            self.hits.finished += u32::from(changed);
            self.confirmed = self.given.clone();
        } else {
            self.confirmed.check(&wal, &recovered)?;
            match recovered.torn {
                Some(_) => self.hits.torn += 1,
                None => self.hits.gone += u32::from(changed),
            }
        }
        // A hint that no header carried is forgotten; what came back counts from here on.
        self.confirmed.hinted = Slot::ZERO;
        self.confirmed.explicit = recovered.decided;
        self.given = self.confirmed.clone();
        self.wal = wal;
        self.failed = false;
        self.crash = None;
        Ok(())
    }
}

#[test]
fn random_histories_with_crashes_lose_nothing_confirmed() {
    let config = ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() };
    let hits = Cell::new(Hits::default());
    let steps = proptest::collection::vec(step(), 1..120);
    let result = TestRunner::new(config).run(&steps, |steps| {
        let disk = MemDisk::new();
        let wal = format(disk.clone());
        let (confirmed, given) = (Model::default(), Model::default());
        let mut history =
            History { disk, wal, confirmed, given, byte: 0, failed: false, crash: None, hits: hits.get() };
        for step in steps {
            history.step(step)?;
        }
        history.restart(&[0], true)?;
        hits.set(history.hits);
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    // A fault that never struck counts as untested.
    let Hits { torn, finished, gone } = hits.get();
    assert!(torn > 20 && finished > 20 && gone > 20, "{:?}", hits.get());
}
