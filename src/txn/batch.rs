//! From single transfers to groups: sequences, the window of the session, and the session itself.

use crate::bank::command::Range;
use crate::txn::coordinator::{Coordinator, Life};
use crate::txn::group::Group;
use crate::txn::link::{Link, Reach, Work};
use crate::txn::port::{Event, Outcome, Output};
use crate::types::{Reason, Session, ShardId, Time, Transfer};

/// The shards of a transfer, which are named in ascending order everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Route([ShardId; 2]);

impl Route {
    pub fn new(from: ShardId, to: ShardId) -> Route {
        Route([from.min(to), from.max(to)])
    }

    /// Each once.
    pub fn shards(&self) -> &[ShardId] {
        if self.0[0] == self.0[1] { &self.0[..1] } else { &self.0 }
    }
}

/// Transfers that go the same way and have no sequence yet, in the order in which they were asked for.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub(super) struct Queue {
    tags: Vec<u64>,
    transfers: Vec<Transfer>,
}

impl Queue {
    pub fn push(&mut self, tag: u64, transfer: Transfer) {
        self.tags.push(tag);
        self.transfers.push(transfer);
    }

    /// The first so many.
    fn take(&mut self, count: usize) -> (Vec<Transfer>, Vec<u64>) {
        let (tags, transfers) = (self.tags.split_off(count), self.transfers.split_off(count));
        let rest = Queue { tags, transfers };
        let Queue { tags, transfers } = std::mem::replace(self, rest);
        (transfers, tags)
    }
}

impl Coordinator {
    /// Gives every waiting transfer its sequence and its place in a block.
    pub(super) fn form_groups(&mut self, now: Time, out: &mut Output) {
        let mut waiting = std::mem::take(&mut self.waiting);
        // Patience ends: none of these was ever sent.
        let tired = self.crowded_since.is_some_and(|since| since + self.timeouts.read() <= now);
        waiting.retain(|route, queue| {
            // T8: nothing of it was sent.
            let why = self.obstacle(now, route.shards()).or(tired.then_some(Reason::NoSession));
            let Some(why) = why else { return true };
            queue.tags.iter().for_each(|tag| self.answer(*tag, Outcome::Aborted(why), None, out));
            false
        });
        if waiting.is_empty() {
            self.crowded_since = None;
        }
        let Life::Open(session) = self.life else {
            if !waiting.is_empty() {
                self.open_session(now);
            }
            self.waiting = waiting;
            return;
        };
        waiting.retain(|route, queue| {
            loop {
                // What is left is held back until the mark moves, for which see `renew_session`.
                let fitting = self.limits.group_max.min(self.window_left(session, route.shards()));
                let count = queue.tags.len().min(fitting);
                if count == 0 {
                    return !queue.tags.is_empty();
                }
                let range = Range { session, first: self.next_seq, count: count as u32 };
                self.next_seq += u64::from(range.count);
                let (transfers, tags) = queue.take(count);
                let gid = self.add_group(Group::new(range, route.shards().to_vec(), transfers, tags));
                for shard in route.shards() {
                    self.links[shard.index()].open.insert((session, range.first), gid);
                    self.add_unit(*shard, Work::Execute { group: gid });
                }
            }
        });
        self.waiting = waiting;
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
