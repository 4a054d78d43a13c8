//! When a leader is too slow to lead although it lives: whoever shares its machine or its disk with it leaves it so little
//! that it comes late to everything.
//!
//! Its heartbeats still arrive within an election time-out, so nobody else takes the lead, and the whole cluster is as slow
//! as its leader. It judges itself, by how late it comes to its own deadlines, and leaves the lead to another server; if
//! that one is no faster, not again for a while. Nothing that is safe depends on any of this.
//!
//! Source of the problem: P. Huang et al., "Gray Failure: The Achilles' Heel of Cloud-Scale Systems" (HotOS 2017).

use std::time::Duration;

use crate::config::Timeouts;
use crate::types::Time;

/// It judges itself over stretches of so many election time-outs. Who was late for one of them, all in all, is too slow.
const STRETCH: u32 = 3;
/// For so many election time-outs after it has judged itself too slow it does not do so again.
const PAUSE: u32 = 100;

/// How late one leader comes to its deadlines.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Lateness {
    /// The beginning of the stretch that is being judged.
    since: Time,
    /// By how much it was late since then, all in all.
    late: Duration,
    /// It leaves the lead, or tries to, up to here.
    leaves_until: Option<Time>,
    /// Up to here it does not judge itself again.
    not_before: Time,
}

impl Lateness {
    /// It leads from now on, or does not lead any more.
    pub fn begin(&mut self, now: Time) {
        *self = Lateness { since: now, not_before: self.not_before, ..Lateness::default() };
    }

    /// This leader came to a deadline. Whether it is too slow, of which it is told once.
    ///
    /// Half a heartbeat interval late is nothing: a turn with much to do takes as long.
    pub fn came(&mut self, now: Time, due: Time, timeouts: &Timeouts) -> bool {
        self.late += now.since(due).saturating_sub(timeouts.heartbeat() / 2);
        if now.since(self.since) < timeouts.election() * STRETCH {
            return false;
        }
        let slow = self.late >= now.since(self.since) / STRETCH && now >= self.not_before;
        (self.since, self.late) = (now, Duration::ZERO);
        slow
    }

    /// It takes no new requests for an election time-out, so that what it has proposed can be decided and it can go.
    pub fn leave(&mut self, now: Time, timeouts: &Timeouts) {
        self.leaves_until = Some(now + timeouts.election());
        self.not_before = now + timeouts.election() * PAUSE;
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

    /// Deadlines one behind the other, each met so many milliseconds late: when it is found too slow, within five seconds.
    fn found(pause: u64, late: impl Fn(u64) -> u64) -> Vec<u64> {
        let timeouts = Timeouts::default();
        let mut lateness = Lateness::default();
        lateness.begin(Time(0));
        let (mut now, mut found, mut n) = (Time(0), Vec::new(), 0);
        while now < Time(5_000_000) {
            let due = now + ms(pause);
            now = due + ms(late(n));
            n += 1;
            if lateness.came(now, due, &timeouts) {
                lateness.leave(now, &timeouts);
                assert!(lateness.leaves(now + ms(299)) && !lateness.leaves(now + ms(300)));
                found.push(now.0 / 1000);
            }
        }
        found
    }

    #[test]
    fn who_runs_a_twentieth_of_the_time_is_too_slow_and_told_so_once() {
        assert_eq!(found(3, |_| 57), [900]);
        assert_eq!(found(1, |n| if n % 2 == 0 { 0 } else { 95 }), [970]);
    }

    #[test]
    fn turns_with_much_to_do_are_not_too_slow_nor_is_one_pause() {
        assert!(found(1, |_| 25).is_empty());
        assert!(found(50, |_| 40).is_empty());
        assert!(found(50, |n| if n % 20 == 3 { 299 } else { 1 }).is_empty());
    }

    #[test]
    fn what_was_in_an_earlier_lead_does_not_count() {
        let timeouts = Timeouts::default();
        let mut lateness = Lateness::default();
        assert!(!lateness.came(Time(800_000), Time(0), &timeouts));
        lateness.begin(Time(900_000));
        assert!(!lateness.came(Time(1_900_000), Time(1_900_000), &timeouts));
        assert!(lateness.came(Time(2_900_000), Time(1_900_000), &timeouts));
        lateness.leave(Time(2_900_000), &timeouts);
        lateness.begin(Time(3_000_000));
        assert!(!lateness.leaves(Time(3_000_000)));
        assert!(!lateness.came(Time(5_000_000), Time(3_000_000), &timeouts), "not again so soon");
        assert!(lateness.came(Time(40_000_000), Time(5_000_000), &timeouts));
    }
}
