//! Questions that a leader answers from its state without writing anything, after a heartbeat round that began when they
//! were there (P5): balances, what became of a transaction, and whether it leads.

use crate::bank::Status;
use crate::shard::{Event, Output, Shard};
use crate::txn::message::{Refusal, Response};
use crate::types::{AccountId, ClientId, Reason, Slot, Time, TxnId};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Question {
    /// A probe.
    Leading,
    Balance(AccountId),
    Status(TxnId),
}

/// A question that waits for its heartbeat round (P5), or for a lock (T6).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Pending {
    pub client: ClientId,
    pub request: u64,
    question: Question,
    /// The round that must be confirmed; `None` until the turn in which it arrived ends.
    round: Option<u64>,
    /// What was decided at arrival must be applied.
    slot: Slot,
    pub deadline: Time,
    /// Already reported as waiting for a lock.
    waits: bool,
}

impl Shard {
    /// Takes a question in, if there is room for one more.
    pub(super) fn take_question(
        &mut self,
        now: Time,
        client: ClientId,
        request: u64,
        question: Question,
    ) -> Result<(), Refusal> {
        match question {
            Question::Balance(account) if self.bank.balance(account).is_none() => {
                return Err(Refusal::Malformed(format!("account {account} is not in {}", self.shard)));
            }
            Question::Status(id) if id.session.shard().0 > self.topology.clusters => {
                return Err(Refusal::Malformed(format!(
                    "session {} is of no shard of this bank",
                    id.session
                )));
            }
            _ => {}
        }
        // Reads may wait long for a lock. Who is to free it must be able to find this leader meanwhile (T6).
        let most = match question {
            Question::Leading => 2 * self.limits.waiting_reads,
            _ => self.limits.waiting_reads,
        };
        if self.reads.len() >= most {
            return Err(Refusal::Busy);
        }
        let (slot, deadline) = (self.replica.decided(), now + self.timeouts.read());
        self.reads.push(Pending { client, request, question, round: None, slot, deadline, waits: false });
        Ok(())
    }

    /// One heartbeat round for all questions of this turn (P5).
    pub(super) fn begin_reads(&mut self, out: &mut Output) {
        if self.replica.is_leader() && self.reads.iter().any(|r| r.round.is_none()) {
            let round = self.replica.begin_round(&mut out.paxos);
            self.reads.iter_mut().for_each(|r| _ = r.round.get_or_insert(round));
        }
    }

    pub(super) fn answer_reads(&mut self, now: Time, out: &mut Output) {
        if self.reads.is_empty() {
            return;
        }
        let confirmed = self.replica.confirmed_round();
        let ready = self.replica.phase1_decided();
        let silent = self.comparison.is_silent();
        let applied = self.bank.applied();
        for mut read in std::mem::take(&mut self.reads) {
            let in_force = ready && read.round.is_some_and(|r| r <= confirmed) && read.slot <= applied;
            let in_force = in_force && (read.question == Question::Leading || !silent);
            let response = if in_force {
                self.answer_to(now, &mut read, out)
            } else if read.deadline <= now {
                Some(Response::Refused { request: read.request, why: Refusal::NotLeader(None) })
            } else {
                None
            };
            match response {
                Some(response) => self.reply(now, read.client, response, out),
                None => self.reads.push(read),
            }
        }
    }

    /// The answer to a question that may be answered now; `None` if it waits for a lock.
    fn answer_to(&self, now: Time, read: &mut Pending, out: &mut Output) -> Option<Response> {
        let request = read.request;
        match read.question {
            Question::Leading => {
                let (ballot, decided) = (self.replica.promised(), self.replica.decided());
                Some(Response::Leading { request, ballot, decided })
            }
            Question::Status(id) => {
                let status = self.bank.lookup(id).map(Status::code);
                let participants = self.bank.holds().get(&id).map(|hold| hold.participants);
                Some(Response::Status { request, status, name: self.bank.name(id), participants })
            }
            Question::Balance(account) => match self.bank.is_locked(account) {
                false => {
                    let balance = self.bank.balance(account).ok_or(Reason::UnknownAccount);
                    Some(Response::Balance { request, balance })
                }
                // T6: never the state before an undecided YES.
                true if read.deadline <= now => {
                    Some(Response::Balance { request, balance: Err(Reason::LockContention) })
                }
                true => {
                    if !std::mem::replace(&mut read.waits, true) {
                        out.events.push(Event::ReadWaits { account });
                    }
                    None
                }
            },
        }
    }
}
