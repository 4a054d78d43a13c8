//! Sessions end (T7): how a leader lets one expire, and what a client does whose session was lost.
//!
//! The leader of the shard that issued a session *closes* it in the log of every shard: what has no register there is a
//! NO from then on. A shard that holds nothing of a closed session in doubt never will again. When every shard has said
//! so, each transaction of the session is over everywhere, and no register of it will ever be asked for: the others
//! forget the session, and last the shard that issued it. An attempt that meets an obstacle is dropped; the leader makes
//! another one later. What is in doubt is finished meanwhile as always (T4).
//!
//! A client may only have been paused. It hears *closed* of a transaction that was never executed, and gives it a new
//! name in a new session; or *expired*, which says nothing. Then the other participant is asked once more: whoever it
//! does not forget either is decided there. What both have forgotten stays *unknown*.

use std::collections::BTreeSet;

use crate::bank::{BlockResult, Status};
use crate::txn::batch::Route;
use crate::txn::coordinator::Coordinator;
use crate::txn::group::{Group, Told};
use crate::txn::link::{Unit, Work};
use crate::txn::port::{Event, Output};
use crate::types::{Session, ShardId, Time};

/// A session on its way out.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Retirement {
    live: Vec<Session>,
    /// Closed there, and nothing is in doubt.
    clean: BTreeSet<ShardId>,
    expired: BTreeSet<ShardId>,
}

impl Retirement {
    /// Older sessions of the same shard that have not expired.
    pub fn live(&self) -> &[Session] {
        &self.live
    }

    pub fn is_begun(&self) -> bool {
        !self.clean.is_empty()
    }

    /// Upper bound for the bytes of any block of this retirement.
    pub fn block_bytes(&self) -> usize {
        64 + self.live.len() * size_of::<u64>()
    }
}

impl Coordinator {
    pub(super) fn retire(&mut self, now: Time, session: Session, live: Vec<Session>, out: &mut Output) {
        // Whoever is refused here asks again later.
        if self.retiring.len() >= self.limits.recoveries || self.retiring.contains_key(&session) {
            return;
        }
        let retirement = Retirement { live, clean: BTreeSet::new(), expired: BTreeSet::new() };
        self.retiring.insert(session, retirement);
        out.events.push(Event::Retiring { session });
        for shard in self.shards() {
            self.search_if_idle(now, shard);
            self.add_unit(shard, Work::Close { session });
        }
    }

    /// Upper bound for the bytes of what retirements may yet send to any one shard.
    pub fn retiring_bytes(&self) -> u64 {
        self.retiring.values().map(|retirement| retirement.block_bytes() as u64).sum()
    }

    fn shards(&self) -> Vec<ShardId> {
        self.links.iter().map(|l| l.shard).collect()
    }

    pub(super) fn on_retired(
        &mut self,
        shard: ShardId,
        session: Session,
        work: Work,
        result: BlockResult,
        out: &mut Output,
    ) {
        let Some(retirement) = self.retiring.get_mut(&session) else { return };
        let status = result.unpack().and_then(|statuses| statuses.first().copied());
        if !matches!(status, Some(Status::Done | Status::Expired)) {
            if status == Some(Status::Yes) {
                out.events.push(Event::RetirementWaits { session, shard });
            }
            return self.drop_retirement(session, out);
        }
        let (done, expires) = match work {
            Work::Close { .. } => (&mut retirement.clean, false),
            _ => (&mut retirement.expired, true),
        };
        done.insert(shard);
        let done = done.len();
        let shards = self.shards();
        let issuer = session.shard();
        if expires && done == shards.len() {
            self.retiring.remove(&session);
            out.events.push(Event::SessionExpired { session });
        } else if expires && done == shards.len() - 1 {
            // Last: until then the issuer knows every session that any other shard knows.
            self.add_unit(issuer, Work::Expire { session });
        } else if !expires && done == shards.len() {
            let others = shards.into_iter().filter(|shard| *shard != issuer);
            let first: Vec<ShardId> = if done == 1 { vec![issuer] } else { others.collect() };
            first.into_iter().for_each(|shard| _ = self.add_unit(shard, Work::Expire { session }));
        }
    }

    pub(super) fn drop_retirement(&mut self, session: Session, out: &mut Output) {
        if self.retiring.remove(&session).is_none() {
            return;
        }
        out.events.push(Event::RetirementDropped { session });
        for link in &mut self.links {
            for work in [Work::Close { session }, Work::Expire { session }] {
                while let Some(id) = link.units.iter().find(|(_, u)| u.work == work).map(|(id, _)| *id) {
                    link.remove(id);
                }
            }
        }
    }

    /// What a shard's answer means to its own client if the session was lost there. Nothing else is changed.
    pub(super) fn weigh(
        &mut self,
        gid: u64,
        part: usize,
        unit: Unit,
        votes: Vec<Status>,
        out: &mut Output,
    ) -> Vec<Status> {
        let group = &self.groups[&gid];
        if group.home.is_some() {
            return votes;
        }
        let (session, named) = (group.range.session, group.named);
        let expired = votes.contains(&Status::Expired);
        if expired || votes.contains(&Status::Closed) {
            self.leave_session(session, expired, out);
        }
        if !expired {
            return votes;
        }
        if matches!(unit.work, Work::Execute { .. }) && unit.copies == 1 && !named {
            // T8: the only copy that this shard ever got came too late.
            return vec![Status::Closed; votes.len()];
        }
        self.ask_others_again(gid, part);
        votes
    }

    /// An earlier YES says nothing now: only one that is younger than the answer *expired* does (T7).
    fn ask_others_again(&mut self, gid: u64, part: usize) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        group.fencing = true;
        let over = |votes: &Option<Vec<Status>>| {
            votes.as_ref().is_some_and(|votes| votes.iter().all(|vote| *vote != Status::Yes))
        };
        let others = (0..group.votes.len()).filter(|other| *other != part && !over(&group.votes[*other]));
        let others: Vec<usize> = others.collect();
        others.iter().for_each(|other| group.votes[*other] = None);
        let shards: Vec<ShardId> = others.iter().map(|other| group.participants[*other]).collect();
        for shard in shards {
            while let Some(id) = self.links[shard.index()].unit_of(gid, |_| true) {
                self.links[shard.index()].remove(id);
            }
            self.add_unit(shard, Work::Fence { group: gid });
        }
    }

    /// Whether nothing of this transaction took effect or ever will, nobody was told anything, and it has to be called
    /// otherwise only because its session was lost.
    pub(super) fn may_repeat(group: &Group, i: usize) -> bool {
        group.is_unborn(i) && !group.named && !group.fencing && group.told[i] == Told::Nothing
    }

    /// Puts a transaction back into line, for a place in another session.
    pub(super) fn repeat(&mut self, gid: u64, i: usize) {
        let Some(group) = self.groups.get_mut(&gid) else { return };
        group.told[i] = Told::Final;
        let ends = (group.participants.first(), group.participants.last());
        let (Some(from), Some(to)) = ends else { return };
        self.waiting.entry(Route::new(*from, *to)).or_default().push(group.tags[i], group.transfers[i]);
    }
}
