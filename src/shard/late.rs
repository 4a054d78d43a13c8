//! When a leader is too slow to lead although it lives: whoever shares its machine or its disk with it leaves it so little
//! that it comes late to everything.
//!
//! Its heartbeats still arrive within an election time-out, so nobody else takes the lead, and the whole cluster is as slow
//! as its leader. It judges itself: while something that it proposed is open it sets itself a near deadline, again and again,
//! and notes how late it comes to each. If it is too slow it leaves the lead to another server; if that one is no faster, not
//! again for a while. Nothing that is safe depends on any of this.
//!
//! Source of the problem: P. Huang et al., "Gray Failure: The Achilles' Heel of Cloud-Scale Systems" (HotOS 2017).

use std::time::Duration;

use crate::config::Timeouts;
use crate::types::Time;

/// It judges itself over stretches of so many election time-outs. Who was late for one of them, all in all, is too slow.
const STRETCH: u32 = 3;
/// For so many election time-outs after it has tried to leave the lead in vain it does not judge itself again: meanwhile it
/// takes requests.
const RETRY: u32 = 10;
/// The same after it has left the lead.
const PAUSE: u32 = 100;

/// Its deadlines follow each other at this part of a heartbeat interval.
const PART: u32 = 10;

/// How late one leader comes to its deadlines.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Lateness {
    /// The beginning of the stretch that is being judged.
    since: Time,
    /// By how much it was late since then, all in all.
    late: Duration,
    due: Option<Time>,
    /// It leaves the lead, or tries to, up to here.
    leaves_until: Option<Time>,
    /// Up to here it does not judge itself again.
    not_before: Time,
}

impl Lateness {
    /// It leads from now on, or does not lead any more.
    pub fn begin(&mut self, now: Time, timeouts: &Timeouts) {
        let pause = if self.leaves(now) { now + timeouts.election() * PAUSE } else { self.not_before };
        *self = Lateness { since: now, not_before: pause, ..Lateness::default() };
    }

    /// A turn of this leader ends. While it is `busy` it has a deadline.
    pub fn watch(&mut self, now: Time, busy: bool, timeouts: &Timeouts) {
        let next = now + timeouts.heartbeat() / PART;
        self.due = busy.then(|| self.due.unwrap_or(next));
    }

    pub fn next_deadline(&self) -> Option<Time> {
        self.due
    }

    /// If this leader has come to its deadline: whether it is too slow, of which it is told once.
    ///
    /// Half a heartbeat interval late is nothing: a turn with much to do takes as long. Nor is any one pause enough, however
    /// long: who was still for one moment need not be slow, and if that was too long others lead by now.
    pub fn is_too_slow(&mut self, now: Time, timeouts: &Timeouts) -> bool {
        let Some(due) = self.due.take_if(|due| *due <= now) else { return false };
        if due.since(self.since) >= timeouts.election() * STRETCH {
            (self.since, self.late) = (due, Duration::ZERO);
        }
        let late = now.since(due).saturating_sub(timeouts.heartbeat() / 2);
        self.late += late.min(timeouts.election() / 2);
        let slow = self.late >= timeouts.election() && now >= self.not_before;
        if slow {
            (self.since, self.late) = (now, Duration::ZERO);
        }
        slow
    }

    /// It takes no new requests for two election time-outs, so that what it has proposed can be decided and it can go.
    pub fn leave(&mut self, now: Time, timeouts: &Timeouts) {
        self.leaves_until = Some(now + timeouts.election() * 2);
        self.not_before = now + timeouts.election() * RETRY;
    }

    /// Whether it is about to leave the lead to another server.
    pub fn leaves(&self, now: Time) -> bool {
        self.leaves_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Turns of a busy leader, one behind the other, each so many milliseconds long: when it is found too slow, within five
    /// seconds.
    fn found(length: impl Fn(u64) -> u64) -> Vec<u64> {
        let timeouts = Timeouts::default();
        let mut lateness = Lateness::default();
        lateness.begin(Time(0), &timeouts);
        let (mut now, mut found, mut n) = (Time(0), Vec::new(), 0);
        while now < Time(5_000_000) {
            if lateness.is_too_slow(now, &timeouts) {
                lateness.leave(now, &timeouts);
                assert!(lateness.leaves(now + ms(599)) && !lateness.leaves(now + ms(600)));
                lateness.begin(now, &timeouts);
                found.push(now.0 / 1000);
            }
            lateness.watch(now, true, &timeouts);
            now = now + ms(length(n));
            n += 1;
        }
        found
    }

    #[test]
    fn who_runs_a_twentieth_of_the_time_is_too_slow_and_told_so_once() {
        assert_eq!(found(|n| if n % 4 == 0 { 57 } else { 1 }), [657]);
        assert_eq!(found(|n| if n % 6 == 0 { 95 } else { 1 }), [495]);
    }

    #[test]
    fn turns_with_much_to_do_are_not_too_slow_nor_is_one_pause() {
        assert!(found(|_| 1).is_empty());
        assert!(found(|_| 40).is_empty());
        assert!(found(|n| if n % 4000 == 3 { 2_000 } else { 1 }).is_empty());
        // Pauses far apart do not add up, also if hardly a deadline was met between them.
        let (timeouts, mut lateness) = (Timeouts::default(), Lateness::default());
        for pause in 1..5 {
            let begins = Time(pause * 60_000_000);
            lateness.watch(begins, true, &timeouts);
            assert!(!lateness.is_too_slow(begins + ms(290), &timeouts));
        }
    }

    #[test]
    fn who_has_nothing_to_do_has_no_deadline() {
        let timeouts = Timeouts::default();
        let mut lateness = Lateness::default();
        lateness.watch(Time(0), true, &timeouts);
        assert_eq!(lateness.next_deadline(), Some(Time(5_000)));
        lateness.watch(Time(1_000), true, &timeouts);
        assert_eq!(lateness.next_deadline(), Some(Time(5_000)));
        lateness.watch(Time(2_000), false, &timeouts);
        assert_eq!(
            (lateness.next_deadline(), lateness.is_too_slow(Time(9_000_000), &timeouts)),
            (None, false)
        );
    }

    #[test]
    fn what_was_in_an_earlier_lead_does_not_count() {
        let timeouts = Timeouts::default();
        let mut lateness = Lateness::default();
        let comes = |lateness: &mut Lateness, from: u64, to: u64| {
            lateness.watch(Time(from), true, &timeouts);
            lateness.is_too_slow(Time(to), &timeouts)
        };
        let pauses = |lateness: &mut Lateness, from: u64| {
            [from, from + 200_000].map(|from| comes(lateness, from, from + 190_000))
        };
        assert!(!comes(&mut lateness, 0, 190_000));
        lateness.begin(Time(200_000), &timeouts);
        assert_eq!(pauses(&mut lateness, 200_000), [false, true]);
        lateness.leave(Time(590_000), &timeouts);
        // Something stayed undecided, and it stayed.
        assert_eq!(pauses(&mut lateness, 1_600_000), [false, false], "meanwhile it takes requests");
        assert_eq!(pauses(&mut lateness, 3_600_000), [false, true]);
        lateness.leave(Time(3_990_000), &timeouts);
        lateness.begin(Time(4_000_000), &timeouts);
        assert!(!lateness.leaves(Time(4_000_000)));
        assert_eq!(pauses(&mut lateness, 33_500_000), [false, false], "not again so soon");
        assert_eq!(pauses(&mut lateness, 34_500_000), [false, true]);
    }
}
