//! What a replica does when its log has no room, because the disk is full. That is no failure: nothing was begun.
//!
//! The driver says before a turn how many bytes of records are certain to fit, and the replica produces no more: what does
//! not fit is dropped like a message that was lost, and comes again when there is space. Room is spent in an order:
//!
//! 1. New work may have what lies above the *reserve* ([`Limits::reserve_bytes`](crate::config::Limits)).
//! 2. What frees locks, and what was in flight when the reserve began, may have the reserve but its last quarter. So it is
//!    with acceptances: a follower cannot tell one value from another.
//! 3. The last quarter is for promises. A cluster that could not elect a leader could not answer reads either.
//!
//! A server without room leads only where nobody else could: those that have room refuse it their pre-vote, and a leader
//! that runs out leaves the lead to a majority that has not. So one full disk stops nothing. Where a majority lacks room,
//! whoever leads goes on answering reads and refuses new work, which no majority could accept.
//!
//! Deliberately absent: any idea of where space comes from. [`crate::drive`] asks for it, when this says that it is time.

use std::time::Duration;

use crate::config::limits::RECORD_BYTES;
use crate::paxos::output::{Event, Output};
use crate::paxos::replica::{Replica, Role};
use crate::types::{Record, Time, Value};

/// How long a full disk is left alone before it is asked for space again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A log without space.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Short {
    /// What fits, the records of the turn in progress included.
    bytes: u64,
    ask_at: Time,
}

/// What a leader may still propose while disks are full, in bytes of records.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Room {
    pub new_work: u64,
    /// What frees locks.
    pub rest: u64,
    /// Whether this leader is about to leave the lead to others, who have room.
    pub hands_over: bool,
}

/// What a value takes in a log, at most.
pub fn record_bytes(value: &Value) -> u64 {
    value.len() as u64 + RECORD_BYTES
}

fn cost(record: &Record) -> u64 {
    match record {
        Record::Promise(_) | Record::Decided(_) | Record::Vouch(_) => RECORD_BYTES,
        Record::Accept { value, .. } | Record::Learn { value, .. } => record_bytes(value),
        Record::History { bytes, .. } => record_bytes(bytes),
    }
}

impl Replica {
    /// How many bytes of records are certain to fit; `None` while the disk gives space. To be said anew after each group
    /// of records.
    pub fn set_room(&mut self, now: Time, room: Option<u64>, out: &mut Output) {
        match (room, &mut self.short) {
            (None, None) => {}
            (None, short) => {
                *short = None;
                out.events.push(Event::SpaceBack);
            }
            (Some(bytes), Some(short)) => {
                short.bytes = bytes;
                if short.ask_at <= now {
                    short.ask_at = now + ASK_AGAIN;
                }
            }
            (Some(bytes), short) => {
                *short = Some(Short { bytes, ask_at: now + ASK_AGAIN });
                out.events.push(Event::SpaceShort { room: bytes });
            }
        }
    }

    /// Whether it is time to ask a full disk for space again.
    pub fn asks_for_space(&self, now: Time) -> bool {
        self.short.as_ref().is_some_and(|short| short.ask_at <= now)
    }

    pub(super) fn space_due(&self) -> Option<Time> {
        self.short.as_ref().map(|short| short.ask_at)
    }

    /// Bytes of records that may be written yet, while the disk is full.
    pub fn room(&self) -> Option<u64> {
        self.short.as_ref().map(|short| short.bytes)
    }

    /// The most that this server may want to write for what it was told before this turn.
    pub fn demand(&self) -> u64 {
        match &self.role {
            // Phase 1 may end with each of these votes proposed again.
            Role::Candidate { promises, .. } => {
                let votes = promises.values().flat_map(|promise| promise.cast());
                votes.map(|(_, _, value)| record_bytes(value)).sum()
            }
            _ => 0,
        }
    }

    fn left(&self, out: &Output) -> u64 {
        match &self.short {
            None => u64::MAX,
            Some(short) => short.bytes.saturating_sub(out.records.iter().map(cost).sum()),
        }
    }

    /// Kept for promises.
    fn floor(&self) -> u64 {
        self.limits.reserve_bytes / 4
    }

    /// What acceptances, values learned and notes may have.
    pub(super) fn room_to_accept(&self, out: &Output) -> u64 {
        self.left(out).saturating_sub(self.floor())
    }

    /// On a full disk the list of committed transactions may have what nobody took of what lies above the reserve.
    pub fn room_for_history(&self, out: &Output) -> u64 {
        self.left(out).saturating_sub(self.limits.reserve_bytes)
    }

    pub(super) fn fits(&self, value: &Value, out: &Output) -> bool {
        record_bytes(value) <= self.room_to_accept(out)
    }

    pub(super) fn can_promise(&self, out: &Output) -> bool {
        RECORD_BYTES <= self.left(out)
    }

    /// Whether there is room for new work.
    pub fn has_room(&self) -> bool {
        self.short.as_ref().is_none_or(|short| short.bytes > self.limits.reserve_bytes)
    }

    /// What a leader may propose at the end of this turn; `None` while no disk is full.
    pub fn room_to_propose(&self, now: Time, out: &Output) -> Option<Room> {
        let Role::Leader(leader) = &self.role else { return None };
        if self.short.is_none() && leader.progress.values().all(|p| p.room.is_none()) {
            return None;
        }
        let others = self.others_with_room(now);
        let own = self.left(out).saturating_sub(self.limits.reserve_bytes);
        let accepted = others + usize::from(own > 0) >= self.majority();
        Some(Room {
            new_work: if accepted { own } else { 0 },
            rest: self.room_to_accept(out),
            hands_over: others >= self.majority(),
        })
    }

    /// Whether a leader without room does better to leave the lead to those that have it.
    pub(super) fn hands_over(&self, now: Time) -> bool {
        !self.has_room() && self.others_with_room(now) >= self.majority()
    }

    /// Servers besides this leader that answer, and would accept new work.
    fn others_with_room(&self, now: Time) -> usize {
        let Role::Leader(leader) = &self.role else { return 0 };
        // They speak of what acceptances may have.
        let needed = self.limits.reserve_bytes - self.floor();
        let able = leader.progress.iter().filter(|(server, progress)| {
            let heard = now.since(progress.heard) < self.timeouts.election();
            **server != self.me && heard && progress.room.is_none_or(|room| room > needed)
        });
        able.count()
    }
}
