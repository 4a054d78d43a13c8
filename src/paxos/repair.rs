//! What a server says whose disk lost records, and how it heals (S2).
//!
//! Such a server knows its promise (it would not have started otherwise), but not every vote. So its own promise in a
//! later phase 1 vouches slot by slot: for what it knows of its votes, for nothing where it may have forgotten one, and for
//! nothing up to the slots that it knows as decided without having all the values. A candidate needs, for every slot that
//! is not decided, a majority that vouches ([`choose`]); beyond that any vote counts that anybody remembers.
//!
//! Why that is safe: let (b, v) be the vote of the highest ballot that any promise tells for a slot. The members of a
//! majority have voted in no ballot above b, and have promised the candidate's: so nothing was or will be chosen between
//! these two ballots. In b only v can be chosen, and below b whatever was chosen is v, since v was proposed in b.
//!
//! Values that are gone come from whoever has them, before a campaign's end or from the next leader; behind them the
//! server's own log goes on. What was forgotten matters no more once the server has accepted, in a ballot above its promise
//! at the start, all that phase 1 of that ballot brought up: phase 1 was held without what it forgot, so nothing else of
//! the time before can be chosen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::paxos::message::{Doubts, Fetch, Message, Promise};
use crate::paxos::output::{Event, Output, Purpose, ReadLog};
use crate::paxos::replica::{Replica, Role};
use crate::types::{Ballot, Loss, NodeId, Record, Slot, Time, Value, Vote};

/// What is left to heal.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Repair {
    loss: Loss,
    /// There were doubts, and no record says yet that they ended.
    doubted: bool,
    /// The promise when the server started: no forgotten vote was cast in a higher ballot.
    promised: Ballot,
    /// The slot for whose value this server's own log was asked last.
    asked: Slot,
    /// When it is to be asked on: not all in one turn, during which nobody would be heard.
    pub(super) due: Option<Time>,
}

/// Between two readings of this server's own log.
const SALVAGE_PAUSE: Duration = Duration::from_micros(100);
/// Slots that a message names one by one at most.
const NAMED_AT_MOST: u64 = 1 << 16;

impl Promise {
    /// Every slot up to here is decided, as far as the acceptor knows.
    pub fn known(&self) -> Slot {
        self.loss.as_ref().map_or(self.decided, |loss| loss.known)
    }

    /// The votes that the acceptor remembers.
    pub fn cast(&self) -> Box<dyn Iterator<Item = (Slot, Ballot, &Value)> + '_> {
        match &self.loss {
            None => {
                let slots = (self.decided.0 + 1..).map(Slot);
                Box::new(slots.zip(&self.votes).map(|(slot, (ballot, value))| (slot, *ballot, value)))
            }
            Some(loss) => Box::new(loss.votes.iter().filter_map(|(slot, vote)| match vote {
                Vote::Cast(ballot, value) => Some((*slot, *ballot, value)),
                Vote::Lost(_) => None,
            })),
        }
    }

    /// Whether the acceptor has the value that was decided for a slot, or a vote that may be for it.
    fn has(&self, slot: Slot) -> bool {
        let lacks = |loss: &Loss| loss.gaps.iter().any(|(from, to)| (*from..=*to).contains(&slot));
        match &self.loss {
            _ if slot <= self.decided => true,
            None => slot.0 <= self.decided.0 + self.votes.len() as u64,
            Some(loss) if slot <= loss.known => !lacks(loss),
            Some(loss) => matches!(loss.votes.get(&slot), Some(Vote::Cast(..))),
        }
    }

    /// Whether the acceptor certainly voted for a slot in no higher ballot than this one.
    fn vouches(&self, slot: Slot, highest: Ballot) -> bool {
        let Some(loss) = &self.loss else { return slot > self.decided };
        slot > loss.known
            && match loss.votes.get(&slot) {
                None => slot > loss.hidden,
                Some(Vote::Cast(..)) => true,
                Some(Vote::Lost(ballot)) => ballot.is_some_and(|ballot| ballot <= highest),
            }
    }
}

/// What a new leader must propose for each slot above `decided`: the vote of the highest ballot (P2). Beside them the first
/// slot for which no majority vouches, if there is one: then the votes count only for the slots in front of it.
pub(super) fn choose(
    promises: &BTreeMap<NodeId, Promise>,
    decided: Slot,
    majority: usize,
) -> (BTreeMap<Slot, (Ballot, Value)>, Option<Slot>) {
    let mut votes: BTreeMap<Slot, (Ballot, Value)> = BTreeMap::new();
    for (slot, ballot, value) in
        promises.values().flat_map(Promise::cast).filter(|(slot, ..)| *slot > decided)
    {
        match votes.get(&slot) {
            Some((highest, known)) if *highest == ballot => {
                assert_eq!(known, value, "P2: two values for slot {slot} in ballot {ballot}");
            }
            Some((highest, _)) if *highest > ballot => {}
            _ => _ = votes.insert(slot, (ballot, value.clone())),
        }
    }
    // Between the slots of which somebody says something, each has as many that vouch as the one before, or more.
    let mut slots = BTreeSet::from([decided.next()]);
    for loss in promises.values().filter_map(|promise| promise.loss.as_ref()) {
        slots.extend(loss.votes.keys().flat_map(|slot| [*slot, slot.next()]));
    }
    slots.extend(votes.keys().flat_map(|slot| [*slot, slot.next()]));
    for slot in slots.into_iter().filter(|slot| *slot > decided) {
        let highest = votes.get(&slot).map_or(Ballot::ZERO, |(ballot, _)| *ballot);
        if promises.values().filter(|promise| promise.vouches(slot, highest)).count() < majority {
            return (votes, Some(slot));
        }
    }
    (votes, None)
}

impl Replica {
    /// The same with what damage left of its votes; everything else was restored from what is whole.
    pub fn with_loss(mut self, loss: Option<Loss>) -> Replica {
        let (promised, asked) = (self.promised, self.decided.next());
        self.repair =
            loss.map(|loss| Repair { doubted: loss.has_doubts(), loss, promised, asked, due: None });
        self
    }

    /// Every slot up to here is known as decided; the values above [`Replica::decided`] may be lost.
    pub fn known(&self) -> Slot {
        self.repair.as_ref().map_or(self.decided, |repair| repair.loss.known.max(self.decided))
    }

    /// Whether damage to this server's disk is not made good yet (S2).
    pub fn is_repairing(&self) -> bool {
        self.repair.is_some()
    }

    /// Whether its votes do not count, or not all of them, until that is made good (S2).
    pub fn lacks_votes(&self) -> bool {
        self.doubts() != Doubts::None
    }

    /// Whether this server knows how it voted for a slot, and that this was all.
    pub fn vouches(&self, slot: Slot) -> bool {
        self.repair.is_none() || slot <= self.log.last()
    }

    /// What this server says of its votes, if it lost some and has not made that good.
    pub fn loss(&self) -> Option<Loss> {
        let Repair { loss, .. } = self.repair.as_ref()?;
        let mut votes = loss.votes.clone();
        let mut slot = self.decided.next();
        while let Some((ballot, value)) = self.log.get(slot) {
            votes.insert(slot, Vote::Cast(*ballot, value.clone()));
            slot = slot.next();
        }
        let mut hidden = loss.hidden;
        if hidden <= self.log.last() {
            hidden = Slot::ZERO;
        }
        let after = |(from, to): &(Slot, Slot)| {
            let from = (*from).max(self.decided.next());
            (from <= *to).then_some((from, *to))
        };
        let gaps = loss.gaps.iter().filter_map(after).collect();
        Some(Loss { known: self.known(), votes, hidden, gaps })
    }

    /// S2: whether this server may have forgotten votes.
    pub(super) fn doubts(&self) -> Doubts {
        match &self.repair {
            Some(Repair { loss, promised, .. }) if loss.has_doubts() => {
                if self.promised > *promised {
                    Doubts::Ending
                } else {
                    Doubts::Standing
                }
            }
            // It vouches for nothing up to the slots that it knows as decided, either.
            Some(repair) if self.decided < repair.loss.known => Doubts::Ending,
            _ => Doubts::None,
        }
    }

    /// This server's own log is read on, from where it stopped, but not before `due`.
    pub(super) fn salvage_again(&mut self, due: Time) {
        if let Some(repair) = &mut self.repair {
            (repair.asked, repair.due) = (Slot::ZERO, Some(due));
        }
    }

    /// Takes up again what is whole, as far as the slots before are there now, and asks for what comes next.
    pub(super) fn mend(&mut self, out: &mut Output) {
        let leads = self.is_leader();
        let Some(Repair { loss, doubted, asked, due, .. }) = &mut self.repair else { return };
        *due = None;
        if self.decided < loss.known {
            // A leader decides what a majority accepts in its ballot (P2), which is the same.
            if *asked != self.decided.next() && !leads {
                *asked = self.decided.next();
                let (from, to, max_bytes) = (*asked, loss.known, self.limits.catch_up_bytes);
                out.reads.push(ReadLog { purpose: Purpose::Salvage, from, to, max_bytes });
            }
            return;
        }
        // What was accepted anew stands for what was forgotten.
        loss.votes.retain(|slot, _| *slot > self.log.last());
        let mut next = self.log.last().next();
        while let Some(Vote::Cast(ballot, value)) = loss.votes.get(&next) {
            let (ballot, value) = (*ballot, value.clone());
            loss.votes.remove(&next);
            self.log.put(next, ballot, value);
            next = next.next();
        }
        if loss.votes.is_empty() && loss.hidden <= self.log.last() {
            let (doubted, last) = (*doubted, self.log.last());
            self.repair = None;
            if doubted && self.fits(&Value::noop(), out) {
                // Each slot in doubt has a vote again. Without the record, the next start has the same doubts, or more.
                out.records.push(Record::Vouch(last));
            }
            out.events.push(Event::Mended);
        }
    }

    /// Decided values from this server's own log.
    pub(super) fn salvage(
        &mut self,
        now: Time,
        first: Slot,
        entries: Vec<(Ballot, Value)>,
        out: &mut Output,
    ) {
        if self.is_leader() {
            return;
        }
        let (before, known) = (self.decided, self.known());
        for (slot, (ballot, value)) in (first.0..=known.0).map(Slot).zip(entries) {
            if slot != self.decided.next() {
                continue;
            }
            if self.log.get(slot).is_none() {
                self.log.put(slot, ballot.min(self.promised), value);
            }
            self.set_decided(now, slot, out);
            self.position = self.position.max(slot);
        }
        if self.decided > before {
            out.events.push(Event::Salvaged { decided: self.decided });
            self.caught_up(now, out);
        }
        if let Some(repair) = &mut self.repair {
            repair.due = Some(now + SALVAGE_PAUSE);
        }
    }

    /// This server has accepted all that phase 1 of its ballot brought up to here.
    pub(super) fn forget_doubts(&mut self, phase1_end: Slot, out: &mut Output) {
        let (promised, position) = (self.promised, self.position);
        let Some(Repair { loss, doubted, promised: then, .. }) = &mut self.repair else { return };
        if loss.has_doubts() && promised > *then && position >= phase1_end && position >= loss.known {
            // Nor do those matter that it remembers above: phase 1 found nothing there.
            loss.votes.clear();
            loss.hidden = Slot::ZERO;
            *doubted = false;
            if self.fits(&Value::noop(), out) {
                // Without it, the next start has the same doubts again.
                out.records.push(Record::Vouch(position));
            }
            self.mend(out);
        }
    }

    /// A candidate cannot lead, since nobody vouches for `doubtful`. Of slots in front of it that are known as decided, phase 1
    /// tells the value all the same: whatever was chosen before is what it brings up (P2). That takes knowledge from before
    /// the campaign: what one of the promises calls decided may have been decided since, in a higher ballot. Whether there is
    /// such a slot.
    pub(super) fn learn_chosen(
        &mut self,
        now: Time,
        votes: &BTreeMap<Slot, (Ballot, Value)>,
        doubtful: Slot,
        out: &mut Output,
    ) -> bool {
        let before = self.decided;
        while self.decided.next() < doubtful.min(self.known_before.next()) {
            let slot = self.decided.next();
            let Some((ballot, value)) = votes.get(&slot).filter(|(_, value)| self.fits(value, out)) else {
                break;
            };
            out.records.push(Record::Learn { slot, ballot: *ballot, value: value.clone() });
            self.log.put(slot, *ballot, value.clone());
            self.set_decided(now, slot, out);
            self.position = self.position.max(slot);
        }
        if self.decided > before {
            self.mend(out);
            self.caught_up(now, out);
        }
        self.decided > before
    }

    /// A candidate lacks a value that is decided, and nobody has all up to there: whoever has it may answer.
    pub(super) fn ask_all(&mut self, out: &mut Output) {
        let from = self.decided.next();
        let Role::Candidate { promises, fetching } = &mut self.role else { return };
        if promises.values().any(|promise| promise.known() > self.decided)
            && !std::mem::replace(fetching, true)
        {
            // Also those who promised nothing: one that waits to be let in may be the only one who has it (S3).
            out.now.extend(self.peers().into_iter().map(|peer| (peer, Message::Fetch(Fetch { from }))));
        }
    }

    /// A server that waits to be let in, and hears of no leader: what was decided while it was away may say that it votes
    /// (S3), and without its vote there may be no leader to have that from.
    pub(super) fn ask_peers(&self, out: &mut Output) {
        let from = self.decided.next();
        out.now.extend(self.peers().into_iter().map(|peer| (peer, Message::Fetch(Fetch { from }))));
    }

    /// A campaign ends in vain. If that is for damage, this says where.
    pub(super) fn report_loss(&self, out: &mut Output) {
        let Role::Candidate { promises, .. } = &self.role else { return };
        if promises.len() < self.majority() || promises.values().all(|promise| promise.loss.is_none()) {
            return;
        }
        let known = promises.values().map(Promise::known).max().unwrap_or_default();
        let (_, Some(slot)) = choose(promises, self.decided, self.majority()) else { return };
        if slot > known {
            let slots = vec![(slot, slot)];
            return out.events.push(Event::Lost { slots, decided: false });
        }
        let mut slots: Vec<(Slot, Slot)> = Vec::new();
        let last = known.0.min(self.decided.0 + NAMED_AT_MOST);
        let gone = |slot: &Slot| !promises.values().any(|promise| promise.has(*slot));
        for slot in (slot.0..=last).map(Slot).filter(gone) {
            match slots.last_mut().filter(|(_, last)| last.next() == slot) {
                Some((_, last)) => *last = slot,
                None => slots.push((slot, slot)),
            }
        }
        // Where each value is still with somebody, they are on their way.
        if !slots.is_empty() {
            out.events.push(Event::Lost { slots, decided: true });
        }
    }
}
