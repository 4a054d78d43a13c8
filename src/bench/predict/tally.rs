//! What clients are told, added up.

use std::time::Duration;

use crate::bench::draw::Asked;
use crate::bench::predict::clients::Phase;
use crate::metrics::Latencies;
use crate::txn::Outcome;

/// What clients are told, all together.
pub struct Tally {
    pub phase: Phase,
    pub batch: usize,
    pub in_flight: usize,
    /// Batches that were answered, all in all.
    pub batches: u64,
    /// Whether it is measured at present.
    pub counts: bool,
    pub latencies: Latencies,
    pub committed: u64,
    pub aborted: u64,
    /// By account, what committed transfers made of it.
    pub changes: Vec<i64>,
}

impl Tally {
    /// A transfer is answered, and with it, if `whole` says when that was due, its batch.
    ///
    /// # Errors
    ///
    /// Nobody knows how it ended, which where nothing fails cannot be.
    pub fn answer(
        &mut self,
        now_ns: u64,
        transfer: Asked,
        outcome: &Outcome,
        whole: Option<u64>,
    ) -> Result<(), String> {
        let counts = self.counts;
        self.batches += u64::from(whole.is_some());
        match outcome {
            Outcome::Committed => {
                self.committed += u64::from(counts);
                self.changes[transfer.from.0 as usize - 1] -= i64::from(transfer.amount);
                self.changes[transfer.to.0 as usize - 1] += i64::from(transfer.amount);
            }
            Outcome::Aborted(_) => self.aborted += u64::from(counts),
            other => return Err(format!("a transfer ended with {other:?}")),
        }
        if let Some(due_ns) = whole.filter(|_| counts) {
            self.latencies.record(Duration::from_nanos(now_ns - due_ns));
        }
        Ok(())
    }
}
