//! What a turn of a loop has to do, counted by kind, and what each kind costs.

use serde_json::{Map, Value, json};

/// Kinds of work. The first ones mean the same for servers and clients.
pub const KINDS: usize = 11;
/// One turn of a loop: waking up, polling, publishing what happened.
pub const TURN: usize = 0;
/// A shard that a coordinator looks at in a turn, whether or not there is anything for it. Servers host one, too.
pub const LINK: usize = 1;
/// A message received or sent.
pub const MESSAGE: usize = 2;
/// A byte of a frame received or sent.
pub const BYTE: usize = 3;
/// A block of a slot, applied or taken from a client; of a client: a block sent.
pub const BLOCK: usize = 4;
/// A transaction that a leader checks before it proposes it; of a client: a transfer within a shard that is drawn and given to
/// its coordinator.
pub const TAKEN: usize = 5;
/// A transfer within a shard, applied; of a client: answered.
pub const APPLIED: usize = 6;
/// A transfer across shards, prepared; of a client: drawn and given to its coordinator.
pub const PREPARED: usize = 7;
/// An outcome of one, applied; of a client: one that is answered.
pub const SETTLED: usize = 8;
/// A group of records that is written and synced: what the processor does for it, not how long the disk takes.
pub const SYNC: usize = 9;
/// A byte of such a group.
pub const LOG_BYTE: usize = 10;

/// How often each kind of work is done, or what it costs once, in nanoseconds of a processor.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Work(pub [f64; KINDS]);

const NAMES: [&str; KINDS] = [
    "turn", "link", "message", "byte", "block", "taken", "applied", "prepared", "settled", "sync", "log_byte",
];

impl Work {
    pub fn add(&mut self, kind: usize, count: impl Into<f64>) {
        self.0[kind] += count.into();
    }

    pub fn add_all(&mut self, other: &Work) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// Nanoseconds that so much work takes at such costs.
    pub fn at(&self, costs: &Work) -> f64 {
        self.0.iter().zip(costs.0).map(|(count, cost)| count * cost).sum()
    }

    pub fn json(&self) -> Value {
        let rounded = |cost: f64| json!((cost * 100.0).round() / 100.0);
        Value::Object(
            NAMES
                .iter()
                .zip(self.0)
                .map(|(name, cost)| ((*name).into(), rounded(cost)))
                .collect::<Map<_, _>>(),
        )
    }
}

/// What everything costs on one machine.
#[derive(Clone, PartialEq, Debug)]
pub struct Costs {
    pub server: Work,
    pub client: Work,
    /// Nanoseconds that syncs of the log took beside what the processor did for them: each sync takes one of these, by chance.
    /// At least one.
    pub sync_ns: Vec<f64>,
    /// What each byte adds to that.
    pub disk_ns_per_byte: f64,
    /// Nanoseconds from when a message is handed to the kernel until the loop that it is for has woken up, on one machine.
    pub wake_ns: f64,
}

impl Costs {
    /// The same on processors that do only this share of it in the same time, above 0.
    pub fn at_speed(&self, share: f64) -> Costs {
        let slower = |costs: Work| Work(costs.0.map(|cost| cost / share));
        Costs { server: slower(self.server), client: slower(self.client), ..self.clone() }
    }

    /// # Panics
    ///
    /// Where no sync was measured.
    pub fn median_sync_ns(&self) -> f64 {
        let mut all = self.sync_ns.clone();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }
}

/// Finds what each kind of work costs from turns of which the work and the time are known: the costs, none below zero, that
/// make the sum of squared relative errors least.
#[derive(Clone, Default)]
pub struct Fit {
    /// The normal equations.
    square: [[f64; KINDS]; KINDS],
    right: [f64; KINDS],
}

impl Fit {
    /// `least` keeps what is short, and measured badly, from weighing more than what is long.
    pub fn add(&mut self, work: &Work, ns: f64, least: f64) {
        let weight = 1.0 / ns.max(least).powi(2);
        for (row, x) in self.square.iter_mut().zip(work.0) {
            row.iter_mut().zip(work.0).for_each(|(cell, y)| *cell += weight * x * y);
        }
        self.right.iter_mut().zip(work.0).for_each(|(cell, x)| *cell += weight * x * ns);
    }

    /// By coordinate descent, which keeps to the bound at zero in each step.
    pub fn solve(&self) -> Work {
        let mut costs = [0.0; KINDS];
        for _ in 0..20_000 {
            for kind in 0..KINDS {
                let diagonal = self.square[kind][kind];
                if diagonal > 0.0 {
                    let others: f64 =
                        (0..KINDS).filter(|k| *k != kind).map(|k| self.square[kind][k] * costs[k]).sum();
                    costs[kind] = ((self.right[kind] - others) / diagonal).max(0.0);
                }
            }
        }
        Work(costs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_found_again_and_never_negative() {
        let mut costs = Work::default();
        [(TURN, 900.0), (MESSAGE, 300.0), (APPLIED, 50.0)]
            .into_iter()
            .for_each(|(kind, ns)| costs.add(kind, ns));
        let mut fit = Fit::default();
        for n in 1..50_u32 {
            let mut work = Work::default();
            work.add(TURN, 1);
            work.add(MESSAGE, n % 7);
            work.add(APPLIED, n * n % 101);
            // A kind that costs nothing, though what is measured would have it negative.
            work.add(BLOCK, n % 3);
            fit.add(&work, work.at(&costs) - f64::from(n % 3), 1.0);
        }
        let found = fit.solve();
        for (kind, cost) in costs.0.iter().enumerate() {
            assert!((found.0[kind] - cost).abs() < 3.0, "{found:?}");
        }
        assert!(found.0.iter().all(|cost| *cost >= 0.0));
    }
}
