//! A log that can be copied and compared: what a server's disk holds, without bytes and positions.
//!
//! It keeps what a restart would find rather than every record that led there, so that two histories which the disk
//! forgets make one state. That it says after a restart what the real log says is checked in [`tests`].

use std::io;

use shardpaxosbank::storage::{CommitStats, Pieces, Recovered, StableLog};
use shardpaxosbank::types::{Ballot, Cut, Incarnation, Record, Slot, Value};

/// What a restart would find.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct Kept {
    pub promised: Ballot,
    pub decided: Slot,
    pub noted: Slot,
    /// The latest value of slot 1, 2, …
    values: Vec<(Ballot, Value)>,
}

impl Kept {
    pub fn value(&self, slot: Slot) -> Option<&(Ballot, Value)> {
        self.values.get((slot.0 as usize).checked_sub(1)?)
    }

    fn last(&self) -> Slot {
        Slot(self.values.len() as u64)
    }

    fn raise_decided(&mut self, slot: Slot) {
        self.decided = self.decided.max(slot.min(self.last()));
    }

    fn note(&mut self, record: &Record) {
        match record {
            Record::Promise(ballot) => self.promised = self.promised.max(*ballot),
            Record::Accept { slot, ballot, value } => {
                self.put(*slot, *ballot, value);
                self.promised = self.promised.max(*ballot);
            }
            Record::Learn { slot, ballot, value } => {
                self.put(*slot, *ballot, value);
                if *slot == self.decided.next() {
                    self.decided = *slot;
                }
            }
            Record::Decided(slot) => self.raise_decided(*slot),
            Record::Vouch(_) => {}
            Record::History { to, .. } => {
                self.raise_decided(*to);
                self.noted = *to;
            }
        }
    }

    fn put(&mut self, slot: Slot, ballot: Ballot, value: &Value) {
        assert!(
            slot > Slot::ZERO && slot <= self.last().next(),
            "P2: slot {slot} would leave a gap in the log"
        );
        match self.values.get_mut(slot.0 as usize - 1) {
            Some(entry) => *entry = (ballot, value.clone()),
            None => self.values.push((ballot, value.clone())),
        }
    }

    pub fn recovered(&self) -> Recovered {
        let first = self.decided.0 as usize;
        let votes = (self.values[first..].iter().zip(first as u64 + 1..))
            .map(|((ballot, value), slot)| (Slot(slot), *ballot, value.clone()))
            .collect();
        Recovered {
            incarnation: Incarnation(1),
            founder: true,
            promised: self.promised,
            decided: self.decided,
            noted: self.noted,
            snapshot: None,
            votes,
            loss: None,
            torn: None,
            damaged: Vec::new(),
        }
    }
}

/// How a turn ends early: at its n-th sync (from 0), before or after the records are durable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    BeforeSync(u8),
    AfterSync(u8),
}

/// The log of a server that runs.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct ModelLog {
    durable: Kept,
    /// What is durable once the group in the making is.
    staged: Option<Kept>,
    /// Known as decided, for the records to come; it becomes durable with one of them.
    known: Slot,
    /// What was durable after each sync of the turn that runs, the state before it first.
    pub synced: Vec<Kept>,
    pub fault: Option<Fault>,
}

impl ModelLog {
    /// What a restart makes of it.
    pub fn reopen(&self) -> ModelLog {
        let durable = self.durable.clone();
        ModelLog { known: durable.decided, durable, ..ModelLog::default() }
    }

    pub fn durable(&self) -> &Kept {
        &self.durable
    }

    pub fn begin_turn(&mut self, fault: Option<Fault>) {
        self.synced = vec![self.durable.clone()];
        self.fault = fault;
    }

    /// Forgets what only the turn needed.
    pub fn end_turn(&mut self) {
        self.synced = Vec::new();
        self.fault = None;
    }
}

impl StableLog for ModelLog {
    fn append(&mut self, record: &Record) {
        let staged = self.staged.get_or_insert_with(|| self.durable.clone());
        staged.note(record);
        // The writer's own view of what is decided, which the header of the record carries if it fits.
        let header = match record {
            Record::Learn { slot, .. } if *slot == self.known.next() => {
                self.known = *slot;
                Some(*slot)
            }
            Record::Learn { slot, .. } | Record::Accept { slot, .. } => Some(*slot),
            Record::Decided(slot) | Record::History { to: slot, .. } => {
                self.known = self.known.max(*slot);
                Some(*slot)
            }
            Record::Promise(_) | Record::Vouch(_) => None,
        };
        if header.is_some_and(|slot| slot >= self.known) {
            staged.raise_decided(self.known);
        }
    }

    fn set_decided(&mut self, slot: Slot) {
        let last = self.staged.as_ref().unwrap_or(&self.durable).last();
        self.known = self.known.max(slot.min(last));
    }

    /// A disk of the model is never full.
    fn secure(&mut self, _: u64, _: bool) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn commit(&mut self) -> io::Result<CommitStats> {
        let Some(staged) = self.staged.take() else { return Ok(CommitStats::default()) };
        let commit = self.synced.len().saturating_sub(1) as u8;
        let gone = || Err(io::Error::other("the power is gone"));
        if self.fault == Some(Fault::BeforeSync(commit)) {
            return gone();
        }
        self.durable = staged;
        if self.fault == Some(Fault::AfterSync(commit)) {
            return gone();
        }
        self.synced.push(self.durable.clone());
        Ok(CommitStats::default())
    }

    fn read(&self, from: Slot, max_bytes: usize) -> io::Result<Vec<(Slot, Ballot, Value)>> {
        let mut out = Vec::new();
        let mut bytes = 0;
        let mut slot = from;
        while let Some((ballot, value)) = self.durable.value(slot) {
            bytes += value.len();
            if bytes > max_bytes && !out.is_empty() {
                break;
            }
            out.push((slot, *ballot, value.clone()));
            slot = slot.next();
        }
        Ok(out)
    }

    fn writes_snapshot(&self) -> bool {
        false
    }

    fn begin_snapshot(&mut self, _: Box<dyn Pieces>, _: bool) -> io::Result<()> {
        unreachable!("it is never wanted")
    }

    fn snapshot(&self) -> Option<Cut> {
        None
    }

    fn read_piece(&mut self, _: Slot, _: u64) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn distrust_snapshot(&mut self, _: Slot) {}
}

mod tests {
    use proptest::prelude::*;
    use shardpaxosbank::config::Topology;
    use shardpaxosbank::storage::{Expected, Identity, MemDisk, Wal};
    use shardpaxosbank::types::NodeId;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Promise(u64),
        Accept { up: u64, round: u64 },
        Learn { round: u64 },
        Decided(u64),
        Know(u64),
        Commit,
        Restart,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (1..5u64).prop_map(Op::Promise),
            (0..3u64, 1..5u64).prop_map(|(up, round)| Op::Accept { up, round }),
            (1..5u64).prop_map(|round| Op::Learn { round }),
            (1..6u64).prop_map(Op::Decided),
            (1..6u64).prop_map(Op::Know),
            Just(Op::Commit),
            Just(Op::Commit),
            Just(Op::Restart),
        ]
    }

    const TOPOLOGY: Topology =
        Topology { clusters: 1, servers_per_cluster: 1, accounts: 1, initial_balance: 1 };
    const IDENTITY: Identity =
        Identity { cluster_id: 1, topology: TOPOLOGY, server: NodeId(1), incarnation: 1, founder: true };

    /// Does the same to either log; the records are those that the protocol could ask for.
    fn apply(log: &mut impl StableLog, last: &mut u64, decided: &mut u64, op: &Op, step: u64) {
        let ballot = |round: u64| Ballot::new(round, NodeId(1));
        let value = Value::from_slice(&step.to_le_bytes());
        match *op {
            Op::Promise(round) => log.append(&Record::Promise(ballot(round))),
            Op::Accept { up, round } => {
                let slot = (*decided + 1 + up).min(*last + 1);
                *last = slot.max(*last);
                log.append(&Record::Accept { slot: Slot(slot), ballot: ballot(round), value });
            }
            Op::Learn { round } => {
                *decided += 1;
                *last = (*decided).max(*last);
                log.append(&Record::Learn { slot: Slot(*decided), ballot: ballot(round), value });
            }
            Op::Decided(up) => {
                *decided = (*decided + up).min(*last);
                log.append(&Record::Decided(Slot(*decided)));
            }
            Op::Know(up) => {
                *decided = (*decided + up).min(*last);
                log.set_decided(Slot(*decided));
            }
            Op::Commit => _ = log.commit().expect("no fault is planned"),
            Op::Restart => {}
        }
    }

    proptest! {
        /// Everything that the model says about crashes rests on this.
        #[test]
        fn the_model_s_log_gives_back_what_the_real_one_does(ops in proptest::collection::vec(op(), 1..40)) {
            let expected = Expected { cluster_id: Some(1), topology: TOPOLOGY, server: NodeId(1) };
            let disk = MemDisk::default();
            let mut wal = Wal::format(disk.clone(), IDENTITY, 1 << 16).expect("an empty disk");
            let mut model = ModelLog::default();
            let (mut last, mut decided) = (0, 0);
            for (step, op) in ops.iter().chain([&Op::Restart]).enumerate() {
                model.begin_turn(None);
                if let Op::Restart = op {
                    drop(wal);
                    let (reopened, recovered) = Wal::open(disk.clone(), expected).expect("nothing is damaged");
                    wal = reopened;
                    model = model.reopen();
                    prop_assert_eq!(&recovered, &model.durable().recovered());
                    last = wal.last_slot().0;
                    decided = recovered.decided.0;
                    let read = wal.read(Slot(1), 1 << 20).expect("it was written");
                    prop_assert_eq!(read, model.read(Slot(1), 1 << 20).expect("it is memory"));
                } else {
                    let before = (last, decided);
                    apply(&mut wal, &mut last, &mut decided, op, step as u64);
                    (last, decided) = before;
                    apply(&mut model, &mut last, &mut decided, op, step as u64);
                }
            }
        }
    }
}
