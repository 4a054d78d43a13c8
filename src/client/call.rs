//! One call: gives its operations to the coordinator thread, and again those of which nobody knows, until all are answered
//! or its time is over.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam::channel::unbounded;

use crate::client::{Bank, Error, Receipt};
use crate::runtime::client::{Command, Reply};
use crate::testset::Scheduler;
use crate::txn::{Op, Outcome};
use crate::types::{Reason, Transfer, TxnId};

/// After which a question is asked again; the coordinator looks for a majority at about this pace.
const PAUSE: Duration = Duration::from_millis(100);

/// Transfers of one call that are under way at a time.
const IN_FLIGHT: usize = 8192;

impl Bank {
    /// Asks for what may be asked for twice: a read, a session, what became of an id.
    pub(super) fn ask(&self, op: Op, deadline: Instant) -> Result<Outcome, Error> {
        self.check()?;
        let (to, replies) = unbounded();
        let (mut reason, mut refusal) = (None, None);
        loop {
            self.shared.client.send(Command::Ask { ops: vec![(0, op)], to: to.clone() });
            let Ok(reply) = replies.recv_deadline(deadline) else { break };
            match reply.outcome {
                Outcome::Aborted(Reason::UnknownAccount) => {
                    return Err(Error::Aborted { id: None, reason: Reason::UnknownAccount });
                }
                Outcome::Aborted(why) => reason = Some(why),
                Outcome::NoAnswer => reason = Some(Reason::NoQuorum),
                outcome => return Ok(outcome),
            }
            refusal = reply.refusal.or(refusal);
            let again = Instant::now() + PAUSE;
            if again >= deadline {
                break;
            }
            // Nothing comes before it is asked again.
            let _ = replies.recv_deadline(again);
        }
        Err(refusal.map_or(Error::Unavailable { reason }, |why| Error::Refused(why.to_string())))
    }

    /// Carries out transfers under their ids, see [`Session::submit_all`](super::Session::submit_all).
    pub(super) fn carry_out(
        &self,
        orders: &[(TxnId, Transfer)],
        deadline: Instant,
    ) -> Vec<Result<Receipt, Error>> {
        if let Err(e) = self.check() {
            return vec![Err(e); orders.len()];
        }
        let mut scheduler = Scheduler::new(IN_FLIGHT, false);
        for (number, (_, transfer)) in orders.iter().enumerate() {
            scheduler.push(number, &[transfer.from, transfer.to]);
        }
        let op = |number: usize| {
            let (id, transfer) = orders[number];
            (number, Op::Named { id, transfer })
        };
        let mut results: Vec<Option<Result<Receipt, Error>>> = vec![None; orders.len()];
        let mut left = orders.len();
        // Since all pauses are equally long, who waits longest stands first.
        let mut paused: VecDeque<(Instant, usize)> = VecDeque::new();
        let mut refusal = None;
        let (to, replies) = unbounded();
        while left > 0 {
            let now = Instant::now();
            let mut ops = Vec::new();
            while paused.front().is_some_and(|(until, _)| *until <= now) {
                ops.extend(paused.pop_front().map(|(_, number)| op(number)));
            }
            while let Some(number) = scheduler.next() {
                ops.push(op(number));
            }
            if !ops.is_empty() {
                self.shared.client.send(Command::Ask { ops, to: to.clone() });
            }
            let until = paused.front().map_or(deadline, |(until, _)| deadline.min(*until));
            let first = replies.recv_deadline(until);
            if first.is_err() && Instant::now() >= deadline {
                break;
            }
            for Reply { number, outcome, refusal: why } in first.into_iter().chain(replies.try_iter()) {
                match result_of(orders[number].0, outcome) {
                    Some(result) => {
                        results[number] = Some(result);
                        scheduler.finish(number);
                        left -= 1;
                    }
                    None => {
                        refusal = why.or(refusal);
                        paused.push_back((Instant::now() + PAUSE, number));
                    }
                }
            }
        }
        let refusal = refusal.map(|why| why.to_string());
        let unknown = |number: usize| Err(Error::Unknown { id: orders[number].0, refusal: refusal.clone() });
        results.into_iter().enumerate().map(|(n, result)| result.unwrap_or_else(|| unknown(n))).collect()
    }

    fn check(&self) -> Result<(), Error> {
        if self.shared.client.has_ended() {
            return Err(Error::Broken("the coordinator thread has ended".into()));
        }
        Ok(())
    }
}

/// What the outcome of a transfer means; `None` if nobody knows yet.
fn result_of(id: TxnId, outcome: Outcome) -> Option<Result<Receipt, Error>> {
    Some(match outcome {
        Outcome::Committed => Ok(Receipt { id }),
        Outcome::Aborted(reason) => Err(Error::Aborted { id: Some(id), reason }),
        Outcome::Unknown => return None,
        Outcome::SessionFull => Err(Error::NoSuchId { id }),
        Outcome::Closed => Err(Error::SessionExpired { id, ruled_out: true }),
        Outcome::Forgotten => Err(Error::SessionExpired { id, ruled_out: false }),
        other => unreachable!("the coordinator answers a transfer with {other:?}"),
    })
}
