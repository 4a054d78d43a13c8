//! What a place takes for the time. Nothing that is safe may depend on it, so it may run fast, slow, ahead and back.

use crate::types::Time;

const EVEN: u64 = 1_000_000;

/// A clock that shows `shown` at `anchor` and from then on runs at `rate` millionths of true time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    anchor: Time,
    shown: Time,
    rate: u64,
}

impl Clock {
    /// A true clock that started at `shown`.
    pub fn new(shown: Time) -> Clock {
        Clock { anchor: Time(0), shown, rate: EVEN }
    }

    /// What it shows at a true time.
    pub fn local(&self, now: Time) -> Time {
        let passed = u128::from(now.0.saturating_sub(self.anchor.0)) * u128::from(self.rate);
        Time(self.shown.0 + (passed / u128::from(EVEN)) as u64)
    }

    /// The first true time at which it shows `local`, or `now` if it shows that already.
    pub fn global(&self, local: Time, now: Time) -> Time {
        let Some(ahead) = local.0.checked_sub(self.local(now).0).filter(|ahead| *ahead > 0) else {
            return now;
        };
        let true_time = (u128::from(ahead) * u128::from(EVEN)).div_ceil(u128::from(self.rate));
        // Rounding may leave it one tick short; a turn that finds nothing due costs nothing.
        Time(now.0.saturating_add(u64::try_from(true_time).unwrap_or(u64::MAX)))
    }

    pub fn is_even(&self) -> bool {
        self.rate == EVEN
    }

    /// From now on it runs at `rate` millionths of true time.
    pub fn run_at(&mut self, now: Time, rate: u64) {
        *self = Clock { anchor: now, shown: self.local(now), rate };
    }

    /// It jumps by so many microseconds, back too, but never behind zero.
    pub fn jump(&mut self, now: Time, by: i64) {
        *self =
            Clock { anchor: now, shown: Time(self.local(now).0.saturating_add_signed(by)), rate: self.rate };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_when_the_clock_shows_them() {
        let mut clock = Clock::new(Time(5_000));
        assert_eq!(clock.local(Time(700)), Time(5_700));
        assert_eq!(clock.global(Time(6_000), Time(700)), Time(1_000));
        clock.run_at(Time(1_000), 500_000);
        assert_eq!(clock.local(Time(3_000)), Time(7_000));
        assert_eq!(clock.global(Time(8_000), Time(3_000)), Time(5_000));
        clock.jump(Time(3_000), -6_500);
        assert_eq!(clock.local(Time(3_000)), Time(500));
        assert_eq!(clock.global(Time(100), Time(3_000)), Time(3_000));
        clock.jump(Time(3_000), i64::MAX);
        assert!(clock.global(Time(u64::MAX), Time(3_000)) > Time(3_000));
    }
}
