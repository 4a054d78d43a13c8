//! What the log says, kept in memory: the promise, the decided slot, and where each slot's value stands.
//!
//! The writer and recovery feed it through the same functions, so that what is recovered is what was written. Only recovery
//! finds records that are not whole (S2): then a slot's place is that of the damage, flagged, and the log behind it cannot
//! be retired before somebody has voted for that slot again.

use std::collections::VecDeque;

use super::format::{Jump, Kind, Position};
use crate::types::{Ballot, Slot};

/// The farthest a value may lie above the others. A bound for memory: by P2 the protocol leaves no gap at all.
const MAX_GAP: u64 = 1 << 16;
/// The most slots in doubt at once; they are votes that go round in messages, and memory.
const MAX_DOUBTS: u64 = 1 << 22;
/// Flags in a packed position, whose offset is a multiple of 8: the header is whole and says which vote it was, and its
/// value is not.
const BODILESS: u64 = 1;
/// There may have been a vote, and nobody knows which.
const HIDDEN: u64 = 2;

#[derive(Default, Debug)]
pub(super) struct Contents {
    pub promised: Ballot,
    /// Every slot up to here is decided; never above `present`.
    pub decided: Slot,
    /// Every slot up to here is decided, whether or not its value is here (S2).
    pub known: Slot,
    /// Up to here the log says which transactions committed, or a snapshot stands for it.
    pub noted: Slot,
    /// Every slot up to here has a value in the log.
    pub present: Slot,
    /// Up to here a snapshot stands for the log: what records say of these slots is of no interest.
    base: Slot,
    /// Slot `base` + 1, + 2, …: the packed position of the latest value that is on disk.
    index: VecDeque<u64>,
    /// Values of the group in the making, which nobody may read yet.
    staged: Vec<(Slot, u64)>,
    /// The highest slot among these.
    staged_top: Slot,
    /// Records were lost: a list of committed transactions may be among them.
    lossy: bool,
    /// The slot that recovery starts from.
    origin: Slot,
    /// See [`Jump::slot`]; 0 where the log leads on from a snapshot that is as new.
    jumped: Slot,
    /// See [`Jump::missed`].
    missed: u64,
    /// The log was read beyond it.
    crossed: bool,
    /// The last snapshot that came from elsewhere, whether or not it is there.
    foreign: Slot,
    /// How far the server has come up to this place of the log: its next vote is for the slot after this one, or for a
    /// lower one. Positions move on by one with each vote, or with what becomes known as decided, and it may stand where
    /// it stood once before although a later record is about a lower slot.
    pub stood: Slot,
}

impl Contents {
    /// A log that goes on behind a snapshot, from where the server stood at `stood`.
    pub fn behind(slot: Slot, stood: Slot) -> Contents {
        let (decided, known, noted) = (slot, slot, slot);
        Contents {
            decided,
            known,
            noted,
            present: slot,
            base: slot,
            origin: slot,
            stood,
            ..Contents::default()
        }
    }

    /// The same, with the last snapshot that came from elsewhere in between. `None` if that is too far to be filled in.
    pub fn jumped(self, jump: Jump) -> Option<Contents> {
        let Jump { slot: foreign, missed } = jump;
        let jumped = if foreign > self.base { foreign } else { Slot::ZERO };
        (jumped.0 <= self.base.0 + MAX_DOUBTS).then_some(Contents { jumped, missed, foreign, ..self })
    }

    /// The log was read up to the end of this group.
    pub fn reach(&mut self, group: u64) {
        if self.missed > 0 && group >= self.missed && self.jumped > self.known {
            self.cross_jump();
        }
    }

    /// S2: the snapshot of `jumped` is lost, from which this server went on. What the log said before of slots up to there
    /// was never what was decided, as far as it is known.
    fn cross_jump(&mut self) {
        self.settle();
        let jumped = std::mem::take(&mut self.jumped);
        let before = (jumped.0 - self.base.0) as usize;
        self.index.iter_mut().take(before).for_each(|packed| *packed = 0);
        self.known = self.known.max(jumped);
        (self.present, self.decided) = (self.origin, self.origin);
        (self.lossy, self.crossed) = (true, true);
    }

    /// All of the log was read. Whether it lacks a snapshot that came from elsewhere.
    pub fn finish(&mut self) -> bool {
        if self.jumped > self.known {
            self.cross_jump();
        }
        self.jumped = Slot::ZERO;
        self.settle();
        // The last record may have filled a gap.
        self.decided = self.decided.max(self.known.min(self.present));
        self.crossed
    }

    /// A snapshot that came from elsewhere stands for everything up to `slot`.
    pub fn jump(&mut self, slot: Slot) {
        self.forget(slot);
        self.stood = self.stood.max(slot);
        self.base = self.base.max(slot);
        self.present = self.present.max(slot);
        self.decided = self.decided.max(slot);
        self.known = self.known.max(slot);
        self.noted = self.noted.max(slot);
        self.extend();
    }

    /// Forgets where the values up to `slot` stand; they are read no more.
    pub fn forget(&mut self, slot: Slot) {
        while self.base < slot && !self.index.is_empty() {
            self.index.pop_front();
            self.base = self.base.next();
        }
    }

    /// Where the first of the values stands that slots above `slot` have on disk, or may have had.
    pub fn lowest_above(&self, slot: Slot) -> Option<Position> {
        let from = slot.0.saturating_sub(self.base.0) as usize;
        self.index
            .iter()
            .skip(from)
            .filter_map(|packed| Position::unpack(packed & !(BODILESS | HIDDEN)))
            .min()
    }

    /// Takes in a record that stands, or will stand, at `at`. `Err` names what cannot be.
    pub fn note(&mut self, kind: Kind, slot: Slot, ballot: Ballot, at: Position) -> Result<(), String> {
        if kind.has_value() {
            self.check_gap(slot)?;
            self.stood = self.stood.max(slot);
        }
        match kind {
            Kind::Promise => self.raise_promise(ballot),
            Kind::Accept | Kind::Learn => {
                if kind == Kind::Accept {
                    self.raise_promise(ballot);
                }
                if slot <= self.base {
                    return Ok(());
                }
                self.staged.push((slot, at.pack()));
                self.staged_top = self.staged_top.max(slot);
                if slot == self.present.next() {
                    self.present = slot;
                }
                if kind == Kind::Learn && slot == self.decided.next() {
                    self.known = self.known.max(slot);
                    self.decided = slot;
                }
            }
            Kind::Decided => {
                if slot > self.reached() {
                    return Err(format!("slot {slot} decided while the log holds 1 to {}", self.present));
                }
                self.raise_decided(slot);
            }
            Kind::History => {
                if slot > self.reached() {
                    return Err(format!("history of slot {slot} while the log holds 1 to {}", self.present));
                }
                self.raise_decided(slot);
                if ballot.round <= self.noted.0 + 1 || self.lossy {
                    self.noted = self.noted.max(slot);
                }
            }
            Kind::Vouch => self.vouch(slot),
            Kind::End => {}
        }
        Ok(())
    }

    /// The highest slot that anything was said of.
    fn top(&self) -> Slot {
        self.known.max(self.present).max(self.last()).max(self.staged_top).max(self.jumped)
    }

    /// How far the server had come, whatever of that stands in this log. Where it went back for what damage took, and votes
    /// for these slots stand farther on once more, the log in front of them is not read again, and a record may be about a
    /// slot of which nothing was said yet.
    fn reached(&self) -> Slot {
        self.top().max(self.stood.min(Slot(self.base.0 + MAX_DOUBTS)))
    }

    fn check_gap(&self, slot: Slot) -> Result<(), String> {
        if slot == Slot::ZERO || slot.0 > self.reached().0 + MAX_GAP {
            return Err(format!("value for slot {slot} while the log holds 1 to {}", self.present));
        }
        Ok(())
    }

    /// S2: a record of which only the header is whole. `Err` names what cannot be.
    pub fn note_bodiless(
        &mut self,
        kind: Kind,
        slot: Slot,
        ballot: Ballot,
        at: Position,
    ) -> Result<(), String> {
        self.settle();
        self.lossy = true;
        if !kind.has_value() {
            return Ok(());
        }
        if kind == Kind::Accept {
            self.raise_promise(ballot);
        }
        self.check_gap(slot)?;
        self.stood = self.stood.max(slot);
        if slot <= self.base {
            return Ok(());
        }
        // What was voted for before is not what was decided.
        let open = slot > self.known;
        if kind == Kind::Learn && slot == self.known.next() {
            self.known = slot;
        }
        if open || self.position(slot).is_none() {
            self.put(slot, at.pack() | BODILESS);
            self.present = self.present.min(Slot(slot.0 - 1));
        }
        Ok(())
    }

    /// S2: at most so many records were lost at `at`. They may have been votes for any slot that was not decided then, but
    /// because a server votes in order, for no more slots beyond where it stood than there were records. `Err` if that is
    /// too much.
    pub fn lose(&mut self, records: u64, at: Position) -> Result<(), String> {
        self.settle();
        self.lossy = true;
        // A snapshot from elsewhere moves a server on without a record. Its own, from which this log is read, was taken later:
        // if that counted, old damage would bring new doubts at every start.
        let to = Slot(self.stood.max(self.foreign).0 + records);
        self.stood = to;
        self.check_doubts(to.0.saturating_sub(self.known.0))?;
        self.hide(self.known.next(), to, at);
        self.present = self.present.min(self.known);
        Ok(())
    }

    fn check_doubts(&self, slots: u64) -> Result<(), String> {
        if slots > MAX_DOUBTS {
            return Err(format!("too much is lost: it may have voted for any of {slots} slots"));
        }
        Ok(())
    }

    fn hide(&mut self, from: Slot, to: Slot, at: Position) {
        for slot in (from.0.max(self.base.0 + 1)..=to.0).map(Slot) {
            self.put(slot, at.pack() | HIDDEN);
        }
    }

    /// S2: no vote for a slot above this one matters any more. Those that are here stay up to the first in doubt (P2).
    fn vouch(&mut self, slot: Slot) {
        self.settle();
        let above = (slot.0.saturating_sub(self.base.0) as usize).min(self.index.len());
        let whole = |packed: &&u64| **packed != 0 && **packed & (BODILESS | HIDDEN) == 0;
        let kept = self.index.iter().skip(above).take_while(whole).count();
        self.index.truncate(above + kept);
        self.present = self.present.min(self.last());
    }

    pub fn raise_promise(&mut self, ballot: Ballot) {
        self.promised = self.promised.max(ballot);
    }

    /// What is decided counts only as far as the log holds the values.
    pub fn raise_decided(&mut self, slot: Slot) {
        self.stood = self.stood.max(slot);
        if self.jumped > self.known && slot >= self.jumped {
            self.cross_jump();
        }
        self.known = self.known.max(slot.min(self.top()));
        self.decided = self.decided.max(self.known.min(self.present));
    }

    /// The group is on disk: its values may be read.
    pub fn settle(&mut self) {
        let mut staged = std::mem::take(&mut self.staged);
        staged.drain(..).for_each(|(slot, packed)| self.put(slot, packed));
        (self.staged, self.staged_top) = (staged, Slot::ZERO);
        self.extend();
    }

    fn put(&mut self, slot: Slot, packed: u64) {
        let Some(place) = slot.0.checked_sub(self.base.0 + 1) else { return };
        let place = place as usize;
        if self.index.len() <= place {
            self.index.resize(place + 1, 0);
        }
        self.index[place] = packed;
    }

    fn extend(&mut self) {
        while self.position(self.present.next()).is_some() {
            self.present = self.present.next();
        }
    }

    fn packed(&self, slot: Slot) -> u64 {
        let place = slot.0.checked_sub(self.base.0 + 1).and_then(|place| usize::try_from(place).ok());
        place.and_then(|place| self.index.get(place)).copied().unwrap_or(0)
    }

    /// Where the latest value of a slot stands on disk.
    pub fn position(&self, slot: Slot) -> Option<Position> {
        Some(self.packed(slot)).filter(|packed| packed & (BODILESS | HIDDEN) == 0).and_then(Position::unpack)
    }

    /// S2: where the header of the latest vote for a slot stands whose value is lost.
    pub fn bodiless(&self, slot: Slot) -> Option<Position> {
        Some(self.packed(slot))
            .filter(|packed| packed & BODILESS != 0)
            .and_then(|p| Position::unpack(p & !BODILESS))
    }

    /// S2: whether there may have been a vote for a slot that nobody knows.
    pub fn is_hidden(&self, slot: Slot) -> bool {
        self.packed(slot) & HIDDEN != 0
    }

    /// S2: runs of slots that are known as decided and whose values are gone.
    pub fn gaps(&self) -> Vec<(Slot, Slot)> {
        let mut gaps: Vec<(Slot, Slot)> = Vec::new();
        let missing = |slot: &Slot| self.position(*slot).is_none();
        for slot in (self.decided.0 + 1..=self.known.0).map(Slot).filter(missing) {
            match gaps.last_mut().filter(|(_, last)| last.next() == slot) {
                Some((_, last)) => *last = slot,
                None => gaps.push((slot, slot)),
            }
        }
        gaps
    }

    /// The highest slot with a value on disk, or that of the snapshot.
    pub fn last(&self) -> Slot {
        Slot(self.base.0 + self.index.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::NodeId;

    /// The index is as long as the highest slot, so a record of a slot from nowhere must not be believed.
    #[test]
    fn a_value_far_above_the_log_is_refused() {
        let at = Position::start_of(1);
        for present in [0, 1, 2] {
            let mut contents = Contents::default();
            let mut note = |kind, slot| contents.note(kind, Slot(slot), Ballot::ZERO, at).is_ok();
            (1..=present).for_each(|slot| assert!(note(Kind::Accept, slot)));
            assert!(!note(Kind::Accept, 0) && !note(Kind::Learn, 0));
            assert!(!note(Kind::Accept, present + MAX_GAP + 1) && !note(Kind::Decided, present + 1));
            assert!(note(Kind::Learn, present + MAX_GAP) && note(Kind::Decided, present));
        }
    }

    /// A server may stand where it stood once, whatever slot the last record before the damage is about: a new leader proposes
    /// old slots again, and the next vote after them is for a slot above all.
    #[test]
    fn what_is_lost_may_lie_beyond_the_highest_slot() {
        let at = Position::start_of(1);
        let mut contents = Contents::default();
        for slot in (1..=10).chain([4]) {
            contents.note(Kind::Accept, Slot(slot), Ballot::ZERO, at).expect("in order");
        }
        contents.lose(2, at).expect("not too much");
        assert_eq!((contents.last(), contents.is_hidden(Slot(12))), (Slot(12), true));
        // What is known as decided moves it on, too.
        let mut contents = Contents::default();
        contents.note_bodiless(Kind::Learn, Slot(1), Ballot::ZERO, at).expect("in order");
        contents.note(Kind::Accept, Slot(2), Ballot::ZERO, at).expect("in order");
        contents.note_bodiless(Kind::Accept, Slot(3), Ballot::ZERO, at).expect("in order");
        contents.settle();
        contents.raise_decided(Slot(3));
        contents.lose(1, at).expect("not too much");
        assert_eq!((contents.known, contents.last()), (Slot(3), Slot(4)));
    }

    /// A snapshot of its own lies ahead of the damage, which therefore brings no doubts about what came behind.
    #[test]
    fn what_is_lost_in_front_of_a_snapshot_raises_no_doubts_behind_it() {
        let at = Position::start_of(1);
        let mut contents = Contents::behind(Slot(52), Slot(11));
        contents.lose(11, at).expect("not too much");
        assert_eq!((contents.last(), contents.is_hidden(Slot(53))), (Slot(52), false));
        contents.lose(40, at).expect("not too much");
        assert!(
            contents.is_hidden(Slot(53)) && contents.is_hidden(Slot(62)) && !contents.is_hidden(Slot(63))
        );
        // From elsewhere: nobody knows when it came.
        let mut contents = Contents::behind(Slot(52), Slot(11));
        contents.foreign = Slot(52);
        contents.lose(11, at).expect("not too much");
        assert!(contents.is_hidden(Slot(63)));
    }

    /// A server that lost its snapshot voted once more for what stood behind it, and took the snapshot again: the log is read
    /// from between the first votes and the second ones, where it says what came of the first.
    #[test]
    fn records_about_slots_whose_votes_stand_farther_on_are_taken_in() {
        let at = Position::start_of(1);
        let mut contents = Contents::behind(Slot(32), Slot(57));
        contents.note(Kind::History, Slot(36), Ballot::new(33, NodeId(0)), at).expect("it stood there");
        contents.note(Kind::Decided, Slot(57), Ballot::ZERO, at).expect("it stood there");
        assert!(contents.note(Kind::Decided, Slot(58), Ballot::ZERO, at).is_err(), "it never came so far");
        assert_eq!((contents.noted, contents.known, contents.decided), (Slot(36), Slot(32), Slot(32)));
        (33..=57)
            .for_each(|slot| contents.note(Kind::Accept, Slot(slot), Ballot::ZERO, at).expect("in order"));
        contents.settle();
        contents.raise_decided(Slot(57));
        assert_eq!((contents.decided, contents.gaps()), (Slot(57), vec![]));
    }

    /// Whoever voted for one value and learned that another was decided has lost that one with the record that said so.
    #[test]
    fn a_vote_does_not_stand_for_a_decided_value_that_is_lost() {
        let (at, later) = (Position::start_of(1), Position { segment: 1, offset: 8000 });
        let mut contents = Contents::default();
        contents.note(Kind::Accept, Slot(1), Ballot::ZERO, at).expect("in order");
        contents.note_bodiless(Kind::Learn, Slot(1), Ballot::ZERO, later).expect("in order");
        assert_eq!((contents.decided, contents.known, contents.position(Slot(1))), (Slot(0), Slot(1), None));
        assert_eq!(contents.gaps(), [(Slot(1), Slot(1))]);
        // A repetition of what is known and whole costs nothing.
        contents.note(Kind::Learn, Slot(1), Ballot::ZERO, at).expect("in order");
        contents.note_bodiless(Kind::Accept, Slot(1), Ballot::ZERO, later).expect("in order");
        contents.settle();
        assert_eq!((contents.known, contents.position(Slot(1))), (Slot(1), Some(at)));
    }
}
