//! What the log says, kept in memory: the promise, the decided slot, and where each slot's value stands.
//!
//! The writer and recovery feed it through the same functions, so that what is recovered is what was written.

use std::collections::VecDeque;

use super::format::{Kind, Position};
use crate::types::{Ballot, Slot};

/// The farthest a value may lie above the gapless slots. A bound for memory: by P2 the protocol leaves no gap at all.
const MAX_GAP: u64 = 1 << 16;

#[derive(Default, Debug)]
pub(super) struct Contents {
    pub promised: Ballot,
    /// Every slot up to here is decided; never above `present`.
    pub decided: Slot,
    /// Up to here the log says which transactions committed, or a snapshot stands for it.
    pub noted: Slot,
    /// Every slot up to here has a value in the log.
    pub present: Slot,
    /// Up to here a snapshot stands for the log: what records say of these slots is of no interest.
    base: Slot,
    /// Slot `base` + 1, + 2, …: the packed position of the latest value that is on disk.
    index: VecDeque<u64>,
    /// Values of the group in the making, which nobody may read yet.
    staged: Vec<(Slot, Position)>,
}

impl Contents {
    /// A log that goes on behind a snapshot.
    pub fn behind(slot: Slot) -> Contents {
        Contents { decided: slot, noted: slot, present: slot, base: slot, ..Contents::default() }
    }

    /// A snapshot that came from elsewhere stands for everything up to `slot`.
    pub fn jump(&mut self, slot: Slot) {
        self.forget(slot);
        self.base = self.base.max(slot);
        self.present = self.present.max(slot);
        self.decided = self.decided.max(slot);
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

    /// Where the first of the values stands that slots above `slot` have on disk.
    pub fn lowest_above(&self, slot: Slot) -> Option<Position> {
        let from = slot.0.saturating_sub(self.base.0) as usize;
        self.index.iter().skip(from).filter_map(|packed| Position::unpack(*packed)).min()
    }

    /// Takes in a record that stands, or will stand, at `at`. `Err` names what cannot be.
    pub fn note(&mut self, kind: Kind, slot: Slot, ballot: Ballot, at: Position) -> Result<(), String> {
        match kind {
            Kind::Promise => self.raise_promise(ballot),
            Kind::Accept | Kind::Learn => {
                if kind == Kind::Accept {
                    self.raise_promise(ballot);
                }
                if slot != Slot::ZERO && slot <= self.base {
                    return Ok(());
                }
                if slot == Slot::ZERO || slot.0 > self.present.0 + MAX_GAP {
                    return Err(format!("value for slot {slot} while the log holds 1 to {}", self.present));
                }
                self.staged.push((slot, at));
                if slot == self.present.next() {
                    self.present = slot;
                }
                if kind == Kind::Learn && slot == self.decided.next() {
                    self.decided = slot;
                }
            }
            Kind::Decided => {
                if slot > self.present {
                    return Err(format!("slot {slot} decided while the log holds 1 to {}", self.present));
                }
                self.raise_decided(slot);
            }
            Kind::History => {
                if slot > self.present {
                    return Err(format!("history of slot {slot} while the log holds 1 to {}", self.present));
                }
                self.raise_decided(slot);
                if ballot.round <= self.noted.0 + 1 {
                    self.noted = self.noted.max(slot);
                }
            }
            Kind::End => {}
        }
        Ok(())
    }

    pub fn raise_promise(&mut self, ballot: Ballot) {
        self.promised = self.promised.max(ballot);
    }

    /// What is decided counts only as far as the log holds the values.
    pub fn raise_decided(&mut self, slot: Slot) {
        self.decided = self.decided.max(slot.min(self.present));
    }

    /// The group is on disk: its values may be read.
    pub fn settle(&mut self) {
        for (slot, at) in self.staged.drain(..) {
            let Some(place) = slot.0.checked_sub(self.base.0 + 1) else { continue };
            let place = place as usize;
            if self.index.len() <= place {
                self.index.resize(place + 1, 0);
            }
            self.index[place] = at.pack();
        }
        self.extend();
    }

    fn extend(&mut self) {
        while self.position(self.present.next()).is_some() {
            self.present = self.present.next();
        }
    }

    /// Where the latest value of a slot stands on disk.
    pub fn position(&self, slot: Slot) -> Option<Position> {
        let place = usize::try_from(slot.0.checked_sub(self.base.0 + 1)?).ok()?;
        Position::unpack(*self.index.get(place)?)
    }

    /// The highest slot with a value on disk, or that of the snapshot.
    pub fn last(&self) -> Slot {
        Slot(self.base.0 + self.index.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
