//! What a server knows only while it leads: how far each server has come, and which heartbeat rounds came back.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::paxos::message::Doubts;
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
    /// The entries that it needs are gone; nothing is sent until it says where it stands.
    pub gone: bool,
    /// Bytes of records that it would still accept, if its disk is full.
    pub room: Option<u64>,
    /// Whether it may have forgotten votes (S2), once it has said so in this ballot.
    pub doubts: Option<Doubts>,
}

impl Progress {
    /// A fresh view of one server: what its promise said, or nothing yet.
    pub fn new(now: Time, acked: Option<Slot>) -> Progress {
        Progress {
            acked,
            sent: acked.unwrap_or(Slot::ZERO),
            sent_in_round: 0,
            echoed: 0,
            heard: now,
            reading: false,
            gone: false,
            room: None,
            doubts: None,
        }
    }
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

    /// The latest time at or after which a majority, this server included, was heard.
    pub fn majority_heard(&self, me: NodeId, majority: usize, now: Time) -> Time {
        nth_highest(self.progress.iter().map(|(id, p)| if *id == me { now } else { p.heard }), majority)
    }

    /// S2: whether some server may have forgotten votes of this ballot, while a majority with this server is certain not to
    /// have forgotten any: phase 1 of a new ballot ends that.
    pub fn should_renew(&self, me: NodeId, majority: usize, now: Time, timeout: Duration) -> bool {
        let others = self.progress.iter().filter(|(id, p)| **id != me && now.since(p.heard) < timeout);
        let said: Vec<Doubts> = others.filter_map(|(_, p)| p.doubts).collect();
        let sure = said.iter().filter(|doubts| **doubts == Doubts::None).count();
        said.contains(&Doubts::Standing) && 1 + sure >= majority
    }
}

/// The value that at least `n` of the given ones reach.
fn nth_highest<T: Ord>(values: impl Iterator<Item = T>, n: usize) -> T {
    let mut all: Vec<T> = values.collect();
    all.sort_unstable();
    let index = all.len() - n;
    all.swap_remove(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leader S1 of five, as the others let it see them: acknowledged position, echoed round, milliseconds since heard.
    fn leader(others: [(u64, u64, u64); 4], now: Time) -> Leader {
        let mut progress = BTreeMap::new();
        for (id, (acked, echoed, ago)) in (1..).zip([(9, 0, 1000)].into_iter().chain(others)) {
            let heard = Time(now.0 - ago * 1000);
            let (acked, sent) = ((acked > 0).then_some(Slot(acked)), Slot(9));
            progress.insert(
                NodeId(id),
                Progress {
                    acked,
                    sent,
                    sent_in_round: 0,
                    echoed,
                    heard,
                    reading: false,
                    gone: false,
                    room: None,
                    doubts: None,
                },
            );
        }
        let (phase1_end, told) = (Slot::ZERO, Slot::ZERO);
        Leader { phase1_end, progress, round: 7, heartbeat_due: now, told, tell_due: None }
    }

    #[test]
    fn three_of_five_are_a_majority() {
        let now = Time(10_000_000);
        let (me, majority, timeout) = (NodeId(1), 3, Duration::from_millis(300));
        let view = |others| {
            let leader = leader(others, now);
            let position = leader.majority_position(majority).0;
            let hears = leader.hears_majority(me, majority, now, timeout);
            let heard = leader.majority_heard(me, majority, now);
            assert_eq!(hears, now.since(heard) < timeout, "{heard:?}");
            (position, leader.confirmed_round(me, majority), hears)
        };
        // Its own position counts like the others', its own echo and voice are implied.
        assert_eq!(view([(4, 5, 0), (2, 3, 299), (0, 0, 999), (0, 0, 999)]), (2, 3, true));
        assert_eq!(view([(8, 7, 0), (7, 6, 0), (6, 5, 300), (5, 4, 300)]), (7, 6, true));
        assert_eq!(view([(8, 7, 0), (0, 0, 300), (0, 0, 300), (0, 0, 301)]), (0, 0, false));
        assert_eq!(view([(9, 7, 300), (9, 7, 999), (9, 7, 999), (9, 7, 999)]), (9, 7, false));
    }
}
