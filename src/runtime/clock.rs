//! The monotonic clock of one thread, as the core's [`Time`], and the poll time-out that a deadline asks for.

use std::time::{Duration, Instant};

use crate::types::Time;

/// Counts from its creation, plus one second so that "long ago" can be said at the start too.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

const HEAD_START: Duration = Duration::from_secs(1);

impl Clock {
    pub fn start() -> Clock {
        Clock { origin: Instant::now() }
    }

    pub fn now(&self) -> Time {
        Time::default() + HEAD_START + self.origin.elapsed()
    }
}

/// How long the clock had been running at `now`.
pub fn uptime(now: Time) -> Duration {
    now.since(Time::default() + HEAD_START)
}

/// How long to sleep from `now` until `deadline`.
pub fn until(now: Time, deadline: Time) -> Duration {
    deadline.since(now)
}
