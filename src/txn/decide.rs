//! What follows from the votes: decisions, definite aborts, fences, and the recovery of somebody else's transactions.

use std::time::Duration;

use crate::bank::Status;
use crate::txn::coordinator::{Coordinator, Life};
use crate::txn::group::{Group, Verdict};
use crate::txn::link::{Ask, Reach, Sent, UnitId, Work};
use crate::txn::port::{Event, Outcome, Output};
use crate::types::{Reason, ShardId, Time, TxnId};

/// How long a shard without space is spared new work.
const FULL_PAUSE: Duration = Duration::from_millis(250);

impl Coordinator {
    /// Draws every conclusion that the votes of a group allow.
    pub(super) fn evaluate(&mut self, now: Time, gid: u64, out: &mut Output) {
        let group = &self.groups[&gid];
        if group.home.is_some() {
            self.evaluate_recovery(now, gid, out);
        } else if group.all_voted() {
            self.decide(gid, out);
        } else if let Some(why) = self.obstacle_of(now, group) {
            self.evaluate_stalled(gid, why, out);
        }
    }

    /// Why nothing can be executed by these shards at present, if that is so.
    pub(super) fn obstacle(&self, now: Time, participants: &[ShardId]) -> Option<Reason> {
        let mut links = participants.iter().map(|p| &self.links[p.index()]);
        if links.clone().any(|link| link.reach == Reach::NoQuorum) {
            return Some(Reason::NoQuorum);
        }
        links.any(|link| link.full_until > now).then_some(Reason::StorageFull)
    }

    /// The same for a group, which remembers that it is fenced for lack of space.
    pub(super) fn obstacle_of(&self, now: Time, group: &Group) -> Option<Reason> {
        self.obstacle(now, &group.participants).or(group.full.then_some(Reason::StorageFull))
    }

    /// Whether a participant is known to lack a majority.
    pub(super) fn lacks_participant(&self, group: &Group) -> bool {
        group.participants.iter().any(|p| self.links[p.index()].reach == Reach::NoQuorum)
    }

    /// Every vote is in: the client is answered, then the participants are told (T3).
    fn decide(&mut self, gid: u64, out: &mut Output) {
        let group = &self.groups[&gid];
        let verdict = |i| group.verdict(i).expect("T2: all votes give a decision");
        let verdicts: Vec<Verdict> = (0..group.range.count as usize).map(verdict).collect();
        // Only then is there anything to repeat, and that is seldom.
        let closed = group.votes.iter().flatten().any(|votes| votes.contains(&Status::Closed));
        let repeated = |i: &usize| closed && Coordinator::may_repeat(group, *i);
        let repeated: Vec<usize> = (0..verdicts.len()).filter(repeated).collect();
        // These count as told.
        repeated.into_iter().for_each(|i| self.repeat(gid, i));
        let group = self.groups.get_mut(&gid).expect("it was just read");
        for (i, verdict) in verdicts.iter().enumerate() {
            let outcome = group.outcome(i, *verdict);
            group.tell(i, outcome, out);
        }
        let forgotten = verdicts.contains(&Verdict::Forgotten);
        if forgotten {
            let id = TxnId { session: group.range.session, seq: group.range.first };
            out.events.push(Event::Forgotten { id, count: group.range.count });
        }
        if group.participants.len() == 1 || forgotten {
            self.finish(gid);
        } else if group.commits.is_none() {
            group.commits = Some(verdicts.iter().map(|v| *v == Verdict::Commit).collect());
            for shard in group.participants.clone() {
                self.add_unit(shard, Work::Outcome { group: gid });
            }
        }
    }

    /// A participant without a majority, or without space, has not voted. T8 decides what may be said about the group.
    fn evaluate_stalled(&mut self, gid: u64, why: Reason, out: &mut Output) {
        let group = &self.groups[&gid];
        let silent: Vec<(ShardId, UnitId)> = group
            .participants
            .iter()
            .zip(&group.votes)
            .filter(|(_, vote)| vote.is_none())
            .filter_map(|(p, _)| {
                let asks = |w| matches!(w, Work::Execute { .. } | Work::Fence { .. });
                Some((*p, self.links[p.index()].unit_of(gid, asks)?))
            })
            .collect();
        let copies = |(p, id): &(ShardId, UnitId)| self.links[p.index()].units[id].copies;
        if !group.fencing && silent.len() == group.participants.len() && silent.iter().all(|u| copies(u) == 0)
        {
            // Never proposed anywhere, and it will not be.
            for (shard, id) in silent {
                self.links[shard.index()].remove(id);
            }
            // Of what a client named there may be other copies.
            let outcome = if group.named { Outcome::Unknown } else { Outcome::Aborted(why) };
            for i in 0..self.groups[&gid].tags.len() {
                self.tell(gid, i, outcome.clone(), out);
            }
            self.finish(gid);
            return;
        }
        // From here on nothing is executed. A copy that is on its way is waited for; every other is replaced.
        let mut expected = false;
        let mut fenced = false;
        for (shard, id) in silent {
            let link = &mut self.links[shard.index()];
            let unit = &link.units[&id];
            let (waits, fence) = (!unit.in_flight, matches!(unit.work, Work::Fence { .. }));
            // A fence that came back, refused or not answered, says that there is no space even for that.
            expected |= link.reach != Reach::NoQuorum && !(why == Reason::StorageFull && waits && fence);
            if waits && !fence {
                link.replace(id, Work::Fence { group: gid });
                fenced = true;
            }
        }
        let group = self.groups.get_mut(&gid).expect("it was just read");
        group.full |= !group.fencing && why == Reason::StorageFull;
        group.fencing = true;
        if fenced {
            let id = TxnId { session: group.range.session, seq: group.range.first };
            out.events.push(Event::Fencing { id, count: group.range.count });
        }
        if expected {
            return;
        }
        for i in 0..group.tags.len() {
            let verdict = self.groups[&gid].verdict(i);
            let outcome = verdict.map_or(Outcome::Unknown, |verdict| self.groups[&gid].outcome(i, verdict));
            self.tell(gid, i, outcome, out);
        }
    }

    /// Somebody else's transaction: first the other participants' registers, then the own one, then the outcome (T4).
    fn evaluate_recovery(&mut self, now: Time, gid: u64, out: &mut Output) {
        let group = &self.groups[&gid];
        let home = group.home.expect("only recoveries come here");
        let home_part = group.index(home);
        let others_in = (0..group.votes.len()).all(|part| part == home_part || group.votes[part].is_some());
        if !others_in {
            return;
        }
        let id = TxnId { session: group.range.session, seq: group.range.first };
        match group.votes[home_part].as_ref().map(|votes| votes[0]) {
            None if self.links[home.index()].unit_of(gid, |_| true).is_some() => {}
            None => {
                self.search_if_idle(now, home);
                self.add_unit(home, Work::Fence { group: gid });
            }
            Some(Status::Yes) => {
                let commit = group.verdict(0) == Some(Verdict::Commit);
                let participants = group.participants.clone();
                self.groups.get_mut(&gid).expect("it was just read").commits = Some(vec![commit]);
                out.events.push(Event::Recovered { id, commit });
                for shard in participants {
                    self.add_unit(shard, Work::Outcome { group: gid });
                }
            }
            // In doubt no longer: somebody else was faster.
            Some(_) => self.drop_recovery(gid, out),
        }
    }

    /// Ends every recovery; whoever leads now starts its own.
    pub(super) fn abandon(&mut self, out: &mut Output) {
        let recoveries: Vec<u64> =
            self.groups.iter().filter(|(_, g)| g.home.is_some()).map(|(gid, _)| *gid).collect();
        recoveries.into_iter().for_each(|gid| self.drop_recovery(gid, out));
        let retiring: Vec<_> = self.retiring.keys().copied().collect();
        retiring.into_iter().for_each(|session| self.drop_retirement(session, out));
    }

    fn drop_recovery(&mut self, gid: u64, out: &mut Output) {
        let range = self.groups[&gid].range;
        let id = TxnId { session: range.session, seq: range.first };
        out.events.push(Event::RecoveryDropped { id });
        for link in &mut self.links {
            while let Some(id) = link.unit_of(gid, |_| true) {
                link.remove(id);
            }
        }
        self.finish(gid);
    }

    /// A shard has no space for new work, and nothing of this request was proposed. For a while nothing more is begun
    /// there; what frees locks goes on, without the company that it was refused for.
    pub(super) fn on_storage_full(&mut self, now: Time, index: usize, sent: Sent, out: &mut Output) {
        let link = &mut self.links[index];
        let begins = |id: &UnitId| matches!(link.units.get(id).map(|u| u.work), Some(Work::Execute { .. }));
        let begins = sent.units.iter().any(begins);
        link.full_until = now + FULL_PAUSE;
        if !begins {
            link.pause = link.full_until;
        }
        let shard = link.shard;
        let for_client = |id: &UnitId| match link.units.get(id)?.work {
            work @ Work::OpenFor { .. } => Some((*id, work)),
            // It may have been refused for the company that it was in.
            work @ Work::Touch { .. } if !begins => Some((*id, work)),
            _ => None,
        };
        let clients: Vec<(UnitId, Work)> = sent.units.iter().filter_map(for_client).collect();
        clients.iter().for_each(|(id, _)| _ = link.remove(*id));
        let opening = sent.units.iter().find(|id| link.units.get(id).is_some_and(|u| u.work == Work::Open));
        if let Some(id) = opening {
            link.remove(*id);
            self.life = Life::Unopened;
        }
        self.give_up(now, index, sent, true, out);
        clients.into_iter().for_each(|(_, work)| self.turn_away(now, shard, work, out));
        let link = &self.links[index];
        let unsent = |(work, _): &(Work, UnitId)| match work {
            Work::Execute { group } => Some(*group),
            _ => None,
        };
        let waiting: Vec<u64> = link.ready.iter().filter_map(unsent).collect();
        for gid in waiting {
            if self.groups.get(&gid).is_some_and(|g| g.home.is_none() && g.commits.is_none()) {
                self.evaluate(now, gid, out);
            }
        }
    }

    pub(super) fn enter_no_quorum(&mut self, now: Time, index: usize, out: &mut Output) {
        let link = &mut self.links[index];
        link.reach = Reach::NoQuorum;
        out.events.push(Event::NoQuorum { shard: link.shard });
        if self.life == Life::Opening(link.shard) {
            self.life = Life::Unopened;
        }
        let units: Vec<(UnitId, Work)> = link.units.iter().map(|(id, u)| (*id, u.work)).collect();
        for (id, work) in units {
            match work {
                Work::Open => {
                    self.links[index].remove(id);
                }
                Work::OpenFor { .. } | Work::Touch { .. } => {
                    let shard = self.links[index].shard;
                    self.links[index].remove(id);
                    self.turn_away(now, shard, work, out);
                }
                Work::Read { tag, ask: Ask::Status(_) } => self.drop_lookup(tag, out),
                Work::Close { session } | Work::Expire { session } => self.drop_retirement(session, out),
                Work::Read { tag, .. } => {
                    self.links[index].remove(id);
                    let first_sent = self.first_sent.remove(&tag);
                    self.answer(tag, Outcome::Aborted(Reason::NoQuorum), first_sent, out);
                }
                Work::Outcome { group } | Work::Fence { group } | Work::Execute { group } => {
                    match self.groups.get(&group) {
                        Some(g) if g.home.is_some() => self.drop_recovery(group, out),
                        Some(_) if !matches!(work, Work::Outcome { .. }) => self.evaluate(now, group, out),
                        _ => {}
                    }
                }
            }
        }
    }

    /// Every participant has confirmed: the marks may pass these sequences (T7).
    pub(super) fn finish(&mut self, gid: u64) {
        let group = self.groups.remove(&gid).expect("a group finishes once");
        if group.home.is_some() {
            self.recovering.remove(&TxnId { session: group.range.session, seq: group.range.first });
            return;
        }
        for shard in group.participants {
            self.links[shard.index()].open.remove(&(group.range.session, group.range.first));
        }
    }

    pub(super) fn tell(&mut self, gid: u64, i: usize, outcome: Outcome, out: &mut Output) {
        let group = self.groups.get_mut(&gid).expect("T3: a group is told before it finishes");
        group.tell(i, outcome, out);
    }
}
