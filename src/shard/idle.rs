//! When a leader lets the sessions that its shard issued expire (T7): after long idleness, or sooner if there is no room
//! for others.
//!
//! Time decides here when expiry is begun, and nothing else: whether it may go on is for the logs to say.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bank::Bank;
use crate::config::Limits;
use crate::types::{Session, Time};

/// What one leader saw of its shard's sessions. Empty in a server that does not lead, or if sessions never expire.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Idle {
    /// When each session was last used.
    used: BTreeMap<Session, Time>,
    /// When to look which of them are idle.
    look_at: Option<Time>,
}

impl Idle {
    /// A new leader: nobody knows for how long which session was idle.
    pub fn begin(now: Time, after: Option<Duration>, bank: &Bank) -> Idle {
        let Some(after) = after else { return Idle::default() };
        let used = bank.issued().map(|(session, _)| (session, now)).collect();
        Idle { used, look_at: Some(now + after / 8) }
    }

    pub fn next_look(&self) -> Option<Time> {
        self.look_at
    }

    pub fn used(&mut self, now: Time, sessions: &[Session]) {
        if self.look_at.is_some() {
            self.used.extend(sessions.iter().map(|session| (*session, now)));
        }
    }

    /// An open found no room. If room is being made already, haste would not help.
    pub fn crowded(&mut self, now: Time, after: Option<Duration>, bank: &Bank) {
        if bank.issued().any(|(_, closed)| closed) {
            return;
        }
        let soon = after.map(|after| now + after / 64);
        self.look_at = self.look_at.min(soon);
    }

    /// If it is time to look: the sessions to let expire now, each with the older ones that live.
    pub fn due(
        &mut self,
        now: Time,
        after: Option<Duration>,
        limits: &Limits,
        bank: &Bank,
    ) -> Vec<(Session, Vec<Session>)> {
        let (Some(after), Some(look_at)) = (after, self.look_at) else { return Vec::new() };
        if look_at > now {
            return Vec::new();
        }
        self.look_at = Some(now + after / 8);
        let issued: BTreeMap<Session, bool> = bank.issued().collect();
        self.used.retain(|session, _| issued.contains_key(session));
        let idle = |session: &Session| now.since(self.used.get(session).copied().unwrap_or(now));
        let over = |(session, closed): (&Session, &bool)| {
            // Once begun it is finished, whatever its client does.
            (*closed || idle(session) >= after).then_some(*session)
        };
        let mut due: Vec<Session> = issued.iter().filter_map(over).collect();
        if due.is_empty() && issued.len() >= limits.sessions {
            let longest = issued.keys().copied().max_by_key(|session| idle(session));
            due.extend(longest.filter(|session| idle(session) >= after / 8));
        }
        due.into_iter()
            .map(|session| (session, issued.range(..session).map(|(older, _)| *older).collect()))
            .collect()
    }
}
