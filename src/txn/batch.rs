//! From single transfers to groups: sequences, the window of the session, and the session itself.

use std::collections::BTreeMap;

use crate::bank::command::Range;
use crate::txn::coordinator::{Coordinator, Life};
use crate::txn::group::Group;
use crate::txn::link::{Link, Reach, Work};
use crate::txn::port::{Event, Outcome, Output};
use crate::types::{Reason, Session, ShardId, Time, Transfer};

impl Coordinator {
    /// Gives every waiting transfer its sequence and its place in a block.
    pub(super) fn form_groups(&mut self, now: Time, out: &mut Output) {
        let waiting = std::mem::take(&mut self.waiting);
        let mut alive = Vec::new();
        for (tag, transfer, participants) in waiting {
            match self.obstacle(now, &participants) {
                // T8: nothing of it was sent.
                Some(why) => self.answer(tag, Outcome::Aborted(why), None, out),
                None => alive.push((tag, transfer, participants)),
            }
        }
        // Patience ends: none of these was ever sent.
        if self.crowded_since.is_some_and(|since| since + self.timeouts.read() <= now) {
            for (tag, ..) in alive.drain(..) {
                self.answer(tag, Outcome::Aborted(Reason::NoSession), None, out);
            }
        }
        if alive.is_empty() {
            self.crowded_since = None;
        }
        let Life::Open(session) = self.life else {
            if !alive.is_empty() {
                self.open_session(now);
            }
            self.waiting = alive;
            return;
        };
        let mut by_route: BTreeMap<Vec<ShardId>, (Vec<Transfer>, Vec<u64>)> = BTreeMap::new();
        for (tag, transfer, participants) in alive {
            let (transfers, tags) = by_route.entry(participants).or_default();
            transfers.push(transfer);
            tags.push(tag);
        }
        for (participants, (mut transfers, mut tags)) in by_route {
            while !tags.is_empty() {
                let count =
                    tags.len().min(self.limits.group_max).min(self.window_left(session, &participants));
                if count == 0 {
                    // Held back until the mark moves, for which see `renew_session`.
                    let rest = tags.drain(..).zip(transfers.drain(..));
                    self.waiting.extend(rest.map(|(tag, transfer)| (tag, transfer, participants.clone())));
                    break;
                }
                let range = Range { session, first: self.next_seq, count: count as u32 };
                self.next_seq += u64::from(range.count);
                let later = (transfers.split_off(count), tags.split_off(count));
                let gid = self.add_group(Group::new(range, participants.clone(), transfers, tags));
                (transfers, tags) = later;
                for shard in &participants {
                    self.links[shard.index()].open.insert((session, range.first), gid);
                    self.add_unit(*shard, Work::Execute { group: gid });
                }
            }
        }
        if !self.waiting.is_empty() && self.is_window_stuck(session) {
            self.renew_session(now, out);
        }
    }

    /// Everything of `session` below this is finished as far as this shard takes part (T7).
    pub(super) fn mark(&self, index: usize, session: Session) -> u64 {
        self.links[index].oldest(session).map_or(self.next_seq, |(first, _)| first)
    }

    /// Sequences that may still be used on all of these shards (B3).
    fn window_left(&self, session: Session, participants: &[ShardId]) -> usize {
        let end = |p: &ShardId| self.mark(p.index(), session) + self.limits.session_window;
        let end = participants.iter().map(end).min().unwrap_or(0);
        end.saturating_sub(self.next_seq) as usize
    }

    /// Whether a transaction that waits for a shard without a majority keeps a mark, and with it a window, from moving.
    fn is_window_stuck(&self, session: Session) -> bool {
        self.links.iter().any(|link| {
            let (first, gid) = link.oldest(session).unwrap_or((self.next_seq, 0));
            first + self.limits.session_window <= self.next_seq
                && self.groups.get(&gid).is_some_and(|g| self.lacks_participant(g))
        })
    }

    /// Leaves the session to its stragglers and opens another one: what is healthy must not wait for what is not.
    fn renew_session(&mut self, now: Time, out: &mut Output) {
        out.events.push(Event::SessionRenewed);
        self.life = Life::Unopened;
        self.next_seq = 1;
        self.open_session(now);
    }

    /// The session is of no use any more: a shard has closed it, or let it expire (T7).
    pub(super) fn leave_session(&mut self, session: Session, expired: bool, out: &mut Output) {
        if self.life == Life::Open(session) {
            self.life = Life::Unopened;
            self.next_seq = 1;
            out.events.push(Event::SessionLost { session, expired });
        }
    }

    /// The shard that was asked has no room for a session: another one may have, and this one later.
    pub(super) fn no_room(&mut self, now: Time) {
        if let Life::Opening(shard) = self.life {
            self.life = Life::Unopened;
            self.open_from = (shard.index() + 1) % self.links.len();
            self.open_after = now + self.timeouts.election();
            self.crowded_since.get_or_insert(now);
        }
    }

    fn open_session(&mut self, now: Time) {
        if self.life != Life::Unopened || self.open_after > now {
            return;
        }
        let (behind, first) = self.links.split_at(self.open_from);
        let links = || first.iter().chain(behind);
        let usable = |l: &&Link| l.reach != Reach::NoQuorum && l.full_until <= now;
        let with_leader = links().find(|l| l.leader().is_some() && l.full_until <= now);
        let Some(shard) = with_leader.or(links().find(usable)).map(|l| l.shard) else { return };
        self.life = Life::Opening(shard);
        self.search_if_idle(now, shard);
        self.add_unit(shard, Work::Open);
    }
}
