//! Transactions that go the same way together: one range of sequences, one set of participants, one vote per shard.

use crate::bank::Status;
use crate::bank::command::{self, Range};
use crate::txn::port::{Answer, Outcome, Output};
use crate::types::{Reason, ShardId, Time, Transfer};

/// How one transaction of a group ends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    Commit,
    Abort(Reason),
    /// No shard remembers it: how it ended will never be known (T7).
    Forgotten,
}

/// What a client was told about one transaction so far.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Told {
    Nothing,
    Unknown,
    Final,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Group {
    pub range: Range,
    /// In ascending order; one, or two.
    pub participants: Vec<ShardId>,
    /// Empty in a group that recovers transactions which nobody named: fences and outcomes do not need them.
    pub transfers: Vec<Transfer>,
    /// The sequences were named by a client, and are those of these transfers only.
    pub named: bool,
    pub tags: Vec<u64>,
    pub told: Vec<Told>,
    /// By participant: what its registers hold.
    pub votes: Vec<Option<Vec<Status>>>,
    /// Set once every vote is in: who is to commit.
    pub commits: Option<Vec<bool>>,
    /// By participant: the outcome is applied there.
    pub confirmed: Vec<bool>,
    pub first_sent: Option<Time>,
    /// Nothing of this group is executed any more; registers are fenced instead.
    pub fencing: bool,
    /// It is fenced because a participant has no space, not because one has no majority.
    pub full: bool,
    /// The shard in whose name somebody else's transactions are recovered.
    pub home: Option<ShardId>,
}

impl Group {
    pub fn new(range: Range, participants: Vec<ShardId>, transfers: Vec<Transfer>, tags: Vec<u64>) -> Group {
        let parts = participants.len();
        Group {
            range,
            told: vec![Told::Nothing; tags.len()],
            transfers,
            named: false,
            tags,
            votes: vec![None; parts],
            commits: None,
            confirmed: vec![false; parts],
            participants,
            first_sent: None,
            fencing: false,
            full: false,
            home: None,
        }
    }

    pub fn index(&self, shard: ShardId) -> usize {
        self.participants.iter().position(|p| *p == shard).expect("T1: only participants answer for a group")
    }

    /// What the votes known so far say about transaction `i`: an abort as soon as one NO is decided, a commit when all
    /// are YES (T2).
    pub fn verdict(&self, i: usize) -> Option<Verdict> {
        let votes = || self.votes.iter().flatten().map(|statuses| statuses[i]);
        // By far the most.
        if self.all_voted() && votes().all(|vote| matches!(vote, Status::Yes | Status::Committed)) {
            return Some(Verdict::Commit);
        }
        let no = |vote| match vote {
            Status::Aborted(reason) => Some(reason),
            Status::Closed => Some(Reason::NoQuorum),
            _ => None,
        };
        // With a vote missing, a reason of higher precedence may still come; the abort itself is certain.
        let reasons = || votes().filter_map(no);
        if reasons().any(|reason| reason == Reason::IdReused) {
            return Some(Verdict::Abort(Reason::IdReused));
        }
        if let Some(reason) = reasons().min() {
            let full = self.full && reason == Reason::NoQuorum;
            return Some(Verdict::Abort(if full { Reason::StorageFull } else { reason }));
        }
        if !self.all_voted() {
            return None;
        }
        assert!(
            votes().all(Group::is_vote),
            "T2: {:?} are not votes, and were not let in as such",
            self.votes
        );
        let forgets = |vote| matches!(vote, Status::Finished | Status::Expired);
        if !votes().any(forgets) || votes().any(|vote| vote == Status::YesCommitted) {
            return Some(Verdict::Commit);
        }
        // Forgotten by one while another's log still holds it in doubt: it was a NO (T7).
        let in_doubt = votes().any(|vote| !forgets(vote));
        Some(if in_doubt { Verdict::Abort(Reason::NoQuorum) } else { Verdict::Forgotten })
    }

    /// What its client is to be told of transaction `i`.
    pub fn outcome(&self, i: usize, verdict: Verdict) -> Outcome {
        match verdict {
            Verdict::Commit => Outcome::Committed,
            Verdict::Abort(_) if self.named && self.is_unborn(i) => Outcome::Closed,
            Verdict::Abort(reason) => Outcome::Aborted(reason),
            Verdict::Forgotten if self.named => Outcome::Forgotten,
            Verdict::Forgotten => Outcome::Unknown,
        }
    }

    /// Tells the client of transaction `i`, unless it was told so, or anything final, before.
    pub fn tell(&mut self, i: usize, outcome: Outcome, out: &mut Output) {
        let Some(tag) = self.tags.get(i).copied() else { return };
        let told = if outcome == Outcome::Unknown { Told::Unknown } else { Told::Final };
        if self.told[i] != Told::Final && self.told[i] != told {
            self.told[i] = told;
            out.answers.push(Answer { tag, outcome, first_sent: self.first_sent });
        }
    }

    /// Whether a status says what a register holds, or that there is none and never will be.
    pub fn is_vote(status: Status) -> bool {
        !matches!(status, Status::Busy | Status::Done | Status::Invalid)
    }

    /// Whether it is a NO for the sole reason that its session was closed before anything of it was decided.
    pub fn is_unborn(&self, i: usize) -> bool {
        let votes = || self.votes.iter().flatten().map(|statuses| statuses[i]);
        votes().any(|vote| vote == Status::Closed)
            && !votes().any(|vote| matches!(vote, Status::Aborted(_) | Status::Finished | Status::Expired))
    }

    pub fn all_voted(&self) -> bool {
        self.votes.iter().all(Option::is_some)
    }

    /// The block that asks `shard` for its vote.
    pub fn put_execute(&self, out: &mut Vec<u8>) {
        match (self.named, &self.participants[..]) {
            (false, &[a, b]) => command::put_prepare(out, self.range, [a, b], &self.transfers),
            (false, _) => command::put_transfers(out, self.range, &self.transfers),
            (true, &[a, b]) => command::named::put_prepare(out, self.range, [a, b], &self.transfers),
            (true, _) => command::named::put_transfers(out, self.range, &self.transfers),
        }
    }

    pub fn put_fence(&self, out: &mut Vec<u8>) {
        match self.named {
            false => command::put_fence(out, self.range),
            true => command::named::put_fence(out, self.range, &self.transfers),
        }
    }

    pub fn put_outcome(&self, out: &mut Vec<u8>) {
        let commits = self.commits.as_ref().expect("T2: an outcome is sent after every vote is known");
        let commits = command::bits(commits.iter().copied());
        match self.named {
            false => command::put_outcome(out, self.range, &commits),
            true => command::named::put_outcome(out, self.range, &commits, &self.transfers),
        }
    }

    /// Upper bound for the bytes of any block of this group.
    pub fn block_bytes(&self) -> usize {
        let count = self.range.count as usize;
        command::transfers_bytes(count) + count.div_ceil(8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Session;

    fn verdict(votes: [Option<Status>; 2]) -> Option<Verdict> {
        let range = Range { session: Session::new(ShardId(1), 1), first: 1, count: 1 };
        let mut group = Group::new(range, vec![ShardId(1), ShardId(2)], vec![], vec![]);
        group.votes = votes.map(|vote| vote.map(|status| vec![status])).to_vec();
        assert_eq!(group.all_voted(), votes.iter().all(Option::is_some));
        let (one, other) = (group.verdict(0), {
            group.votes.reverse();
            group.verdict(0)
        });
        assert_eq!(one, other, "who voted first makes no difference");
        one
    }

    /// T2: committed iff every register is YES; one NO is enough for the contrary, however late the others are.
    #[test]
    fn the_votes_are_the_decision() {
        let no = |reason| Some(Status::Aborted(reason));
        let abort = |reason| Some(Verdict::Abort(reason));
        for yes in [Status::Yes, Status::YesCommitted, Status::YesAborted, Status::Committed] {
            assert_eq!(verdict([Some(yes), Some(Status::Yes)]), Some(Verdict::Commit));
            assert_eq!(verdict([Some(yes), None]), None);
            assert_eq!(verdict([Some(yes), no(Reason::LockContention)]), abort(Reason::LockContention));
        }
        assert_eq!(verdict([None, None]), None);
        assert_eq!(verdict([None, no(Reason::LockContention)]), abort(Reason::LockContention));
        let both = [no(Reason::InsufficientBalance), no(Reason::LockContention)];
        assert_eq!(verdict(both), abort(Reason::LockContention), "in order of precedence");
        // T7: what was forgotten while this shard still holds it in doubt was a NO.
        for forgotten in [Status::Finished, Status::Expired] {
            assert_eq!(verdict([Some(forgotten), Some(Status::Yes)]), abort(Reason::NoQuorum));
            assert_eq!(verdict([Some(forgotten), no(Reason::UnknownAccount)]), abort(Reason::UnknownAccount));
        }
    }

    #[test]
    fn only_what_a_register_holds_is_a_vote() {
        for status in [Status::Busy, Status::Done, Status::Invalid] {
            assert!(!Group::is_vote(status), "{status:?}");
        }
        for status in [Status::Yes, Status::Committed, Status::Finished, Status::Aborted(Reason::NoQuorum)] {
            assert!(Group::is_vote(status), "{status:?}");
        }
    }
}
