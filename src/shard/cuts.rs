//! When a server takes a snapshot of its own state.
//!
//! Servers cut after the same slots: the first agreed one (P4) behind so many bytes of decided values. So most of them
//! have the same snapshots, and a transfer that one of them began goes on at any other.

use crate::bank::{Bank, Image};
use crate::config::Limits;
use crate::paxos::room::record_bytes;
use crate::types::{Slot, Value};

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cuts {
    /// Bytes of decided values from one cut to the next; at `u64::MAX` there is none.
    every: u64,
    digest_slots: u64,
    piece_bytes: u32,
    /// Bytes applied since a cut was due.
    bytes: u64,
    /// A cut that no majority has confirmed yet.
    waiting: Option<Image>,
}

impl Cuts {
    /// For a bank that was just opened, or that a snapshot gave back.
    pub fn new(limits: &Limits) -> Cuts {
        let Limits { snapshot_bytes, digest_slots, piece_bytes, .. } = *limits;
        Cuts { every: snapshot_bytes, digest_slots, piece_bytes, bytes: 0, waiting: None }
    }

    /// The bank has applied one more slot, with this value. Cuts if it is time; a cut that still waits is out of date.
    pub fn applied(&mut self, bank: &Bank, value: &Value) {
        if self.every == u64::MAX {
            return;
        }
        self.bytes += record_bytes(value);
        if self.bytes >= self.every && bank.applied().0.is_multiple_of(self.digest_slots) {
            self.bytes = 0;
            self.waiting = Some(bank.image(self.piece_bytes));
        }
    }

    /// The bank is another one now, that of a snapshot: whoever took it began to count anew there.
    pub fn jumped(&mut self) {
        self.bytes = 0;
        self.waiting = None;
    }

    /// Whether there is one that was not handed out yet.
    pub fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    /// Hands out a cut once a majority has confirmed a digest at or behind it (P4), which stands for the cut as well: what
    /// others are sent, and what the log in front of it is given up for, is a state that a majority had.
    pub fn take_confirmed(&mut self, confirmed: Slot) -> Option<Image> {
        self.waiting.take_if(|image| image.cut().slot <= confirmed)
    }
}
