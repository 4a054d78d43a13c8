//! What a server knows only while it leads: how far each server has come, and which heartbeat rounds came back.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::types::{NodeId, Slot, Time};

/// One server as its leader sees it. The leader keeps one for itself as well.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Progress {
    /// Accepted in this ballot, or decided, up to here; `None` until the server has said so.
    pub acked: Option<Slot>,
    /// The last slot that was sent.
    pub sent: Slot,
    /// The heartbeat round that was current when `sent` last grew: an echo of a later one that still names an older
    /// position means that something was lost.
    pub sent_in_round: u64,
    /// The highest heartbeat round echoed.
    pub echoed: u64,
    /// When it last answered in this ballot.
    pub heard: Time,
    /// Entries for it are being read from disk.
    pub reading: bool,
}

/// A leader's state; it ends with the ballot.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Leader {
    /// The last slot that phase 1 left to be proposed again.
    pub phase1_end: Slot,
    pub progress: BTreeMap<NodeId, Progress>,
    /// The heartbeat round begun last.
    pub round: u64,
    pub heartbeat_due: Time,
    /// The decided slot that was last told to everybody.
    pub told: Slot,
    /// When `told` must have caught up with the decided slot.
    pub tell_due: Option<Time>,
}

impl Leader {
    /// The highest slot that a majority has accepted in this ballot.
    pub fn majority_position(&self, majority: usize) -> Slot {
        nth_highest(self.progress.values().map(|p| p.acked.unwrap_or(Slot::ZERO)), majority)
    }

    /// The highest heartbeat round that a majority has echoed; this server's own echo is implied.
    pub fn confirmed_round(&self, me: NodeId, majority: usize) -> u64 {
        let echoes = self.progress.iter().map(|(id, p)| if *id == me { self.round } else { p.echoed });
        nth_highest(echoes, majority)
    }

    /// Check-quorum: whether a majority, this server included, answered within `timeout`.
    pub fn hears_majority(&self, me: NodeId, majority: usize, now: Time, timeout: Duration) -> bool {
        let hears = |(id, p): (&NodeId, &Progress)| *id == me || now.since(p.heard) < timeout;
        self.progress.iter().filter(|entry| hears(*entry)).count() >= majority
    }
}

/// The value that at least `n` of the given ones reach.
fn nth_highest<T: Ord>(values: impl Iterator<Item = T>, n: usize) -> T {
    let mut all: Vec<T> = values.collect();
    all.sort_unstable();
    let index = all.len() - n;
    all.swap_remove(index)
}
