//! What clients name themselves: sessions of their own, transfers with an id, and questions about ids.
//!
//! Whoever has an id may ask for its transfer again, at any server: the registers of T1 belong to the id and the transfer
//! together, so that all who carry it out come to the same decision. Nobody but the client knows which copies there are.
//! Therefore a definite NO comes from a register only (T8), nothing is called by another name, and no mark passes a named
//! transaction: it is remembered for as long as its session.

use std::collections::BTreeMap;

use crate::bank::command::Range;
use crate::bank::{BlockResult, Status, named_window, validate};
use crate::txn::batch::Route;
use crate::txn::coordinator::Coordinator;
use crate::txn::group::Group;
use crate::txn::link::{Ask, Link, Reach, Sent, Work};
use crate::txn::port::{Found, Outcome, Output};
use crate::types::{Reason, Session, ShardId, Time, Transfer, TxnId};

/// Sessions of clients that this coordinator remembers to exist. Whoever is forgotten is asked for again.
const KNOWN_SESSIONS: usize = 4096;

/// So often within the time in which an idle session expires its issuer hears that one is in use: more often than sessions
/// are idle for an eighth of it, the least that makes one give way to others where there is no room.
const SIGNS_OF_LIFE: u32 = 16;

/// A question about an id, on its way to shards.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Lookup {
    waits_for: usize,
    answers: BTreeMap<ShardId, Remembered>,
}

/// A transfer that waits until it is known that there is such a session.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct NamedWish {
    tag: u64,
    id: TxnId,
    transfer: Transfer,
    participants: Vec<ShardId>,
}

/// What a shard remembers of an id.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Remembered {
    status: Option<Status>,
    name: Option<Transfer>,
    participants: Option<[ShardId; 2]>,
}

impl Remembered {
    pub(super) fn new(
        code: Option<u8>,
        name: Option<Transfer>,
        participants: Option<[ShardId; 2]>,
    ) -> Remembered {
        Remembered { status: code.and_then(Status::from_code), name, participants }
    }
}

impl Coordinator {
    /// The highest sequence that a client may name in a session.
    pub fn named_max(&self) -> u64 {
        named_window(self.limits.session_window)
    }

    // ---- sessions of clients ----

    /// Asks a shard for a session: the first that has a leader and has not been asked for this one.
    pub(super) fn open_for(&mut self, now: Time, tag: u64, out: &mut Output) {
        let tried = self.opening.entry(tag).or_default();
        let links = || self.links.iter().filter(|link| !tried.contains(&link.shard));
        let usable = |link: &&Link| {
            let looked_for_anew = self.lazy && link.units.is_empty();
            (link.reach != Reach::NoQuorum || looked_for_anew) && link.full_until <= now
        };
        let shard = links()
            .find(|link| link.leader().is_some() && usable(link))
            .or_else(|| links().find(usable))
            .map(|link| link.shard);
        let Some(shard) = shard else {
            let crowded = self.opening.remove(&tag).is_some_and(|tried| !tried.is_empty());
            let why = if crowded { Reason::NoSession } else { Reason::NoQuorum };
            return self.answer(tag, Outcome::Aborted(why), None, out);
        };
        self.search_if_idle(now, shard);
        self.add_unit(shard, Work::OpenFor { tag });
    }

    /// A shard has no room for one more session, or cannot be reached: another one may.
    pub(super) fn open_elsewhere(&mut self, now: Time, tag: u64, shard: ShardId, out: &mut Output) {
        self.opening.entry(tag).or_default().insert(shard);
        self.open_for(now, tag, out);
    }

    /// A shard cannot take what a client wants of a session: another one may open it, or the client may ask again.
    pub(super) fn turn_away(&mut self, now: Time, shard: ShardId, work: Work, out: &mut Output) {
        match work {
            Work::OpenFor { tag } => self.open_elsewhere(now, tag, shard, out),
            Work::Touch { session } => self.drop_touch(session, out),
            _ => {}
        }
    }

    pub(super) fn opened_for(&mut self, now: Time, tag: u64, session: Session, out: &mut Output) {
        self.opening.remove(&tag);
        self.remember(now, session);
        self.answer(tag, Outcome::Opened(session), None, out);
    }

    fn remember(&mut self, now: Time, session: Session) {
        if self.known_sessions.len() >= KNOWN_SESSIONS {
            self.known_sessions.pop_first();
        }
        self.known_sessions.insert(session, now);
    }

    /// Tells the shard that issued a session that it is in use, and hears whether there is such a session.
    fn touch(&mut self, now: Time, session: Session, out: &mut Output) {
        let shard = session.shard();
        self.search_if_idle(now, shard);
        if self.links[shard.index()].reach == Reach::NoQuorum {
            return self.drop_touch(session, out);
        }
        self.add_unit(shard, Work::Touch { session });
    }

    pub(super) fn on_touched(&mut self, now: Time, session: Session, result: &BlockResult, out: &mut Output) {
        let waiting = self.touching.remove(&session).unwrap_or_default();
        let status = result.unpack().and_then(|statuses| statuses.first().copied());
        if status == Some(Status::Done) {
            self.remember(now, session);
            waiting.into_iter().for_each(|w| self.execute_named(now, w, out));
            return;
        }
        self.known_sessions.remove(&session);
        let outcome = if status == Some(Status::Expired) { Outcome::Forgotten } else { Outcome::Unknown };
        waiting.into_iter().for_each(|w| self.answer(w.tag, outcome.clone(), None, out));
    }

    /// The shard that issued a session has no majority, or no space.
    fn drop_touch(&mut self, session: Session, out: &mut Output) {
        let waiting = self.touching.remove(&session).unwrap_or_default();
        waiting.into_iter().for_each(|w| self.answer(w.tag, Outcome::Unknown, None, out));
    }

    // ---- transfers with an id ----

    pub(super) fn submit_named(
        &mut self,
        now: Time,
        tag: u64,
        id: TxnId,
        transfer: Transfer,
        out: &mut Output,
    ) {
        let participants = match validate(&self.topology, &transfer) {
            Ok((from, to)) => Route::new(from, to).shards().to_vec(),
            Err(reason) => return self.answer(tag, Outcome::Aborted(reason), None, out),
        };
        if id.seq == 0 || id.seq > self.named_max() {
            return self.answer(tag, Outcome::SessionFull, None, out);
        }
        if !self.issues(id.session) {
            return self.answer(tag, Outcome::Forgotten, None, out);
        }
        let wish = NamedWish { tag, id, transfer, participants };
        let session = id.session;
        let stale = self.timeouts.session_idle().map(|idle| idle / SIGNS_OF_LIFE);
        match self.known_sessions.get(&session) {
            Some(at) => {
                // Its issuer hears nothing of what goes to other shards.
                if stale.is_some_and(|stale| now.since(*at) >= stale) && !self.touching.contains_key(&session)
                {
                    self.touching.insert(session, Vec::new());
                    self.touch(now, session, out);
                }
                self.execute_named(now, wish, out);
            }
            // A shard takes up any session of another one at its first mention. One that was never opened would stay for ever.
            None => {
                let first = !self.touching.contains_key(&session);
                self.touching.entry(session).or_default().push(wish);
                if first {
                    self.touch(now, session, out);
                }
            }
        }
    }

    fn issues(&self, session: Session) -> bool {
        (1..=self.topology.clusters).contains(&session.shard().0) && session.number() > 0
    }

    fn execute_named(&mut self, now: Time, wish: NamedWish, out: &mut Output) {
        let NamedWish { tag, id, transfer, participants } = wish;
        let range = Range { session: id.session, first: id.seq, count: 1 };
        let mut group = Group::new(range, participants.clone(), vec![transfer], vec![tag]);
        group.named = true;
        let gid = self.add_group(group);
        for shard in participants {
            self.search_if_idle(now, shard);
            self.add_unit(shard, Work::Execute { group: gid });
        }
        if self.obstacle_of(now, &self.groups[&gid]).is_some() {
            self.evaluate(now, gid, out);
        }
    }

    // ---- questions ----

    pub(super) fn submit_lookup(&mut self, now: Time, tag: u64, id: TxnId, out: &mut Output) {
        if id.seq == 0 || !self.issues(id.session) {
            return self.answer(tag, Outcome::Found(Found::NeverSeen), None, out);
        }
        let shards: Vec<ShardId> = self.topology.shards().collect();
        self.lookups.insert(tag, Lookup { waits_for: shards.len(), answers: BTreeMap::new() });
        for shard in &shards {
            if self.lazy {
                self.search_if_idle(now, *shard);
            }
        }
        if shards.iter().any(|shard| self.links[shard.index()].reach == Reach::NoQuorum) {
            return self.drop_lookup(tag, out);
        }
        for shard in shards {
            self.add_unit(shard, Work::Read { tag, ask: Ask::Status(id) });
        }
    }

    /// A shard that was asked cannot be reached.
    pub(super) fn drop_lookup(&mut self, tag: u64, out: &mut Output) {
        if self.lookups.remove(&tag).is_none() {
            return;
        }
        for link in &mut self.links {
            let asks = |work: Work| matches!(work, Work::Read { tag: other, .. } if other == tag);
            let units: Vec<_> = link.units.iter().filter(|(_, u)| asks(u.work)).map(|(id, _)| *id).collect();
            units.into_iter().for_each(|id| _ = link.remove(id));
        }
        let first_sent = self.first_sent.remove(&tag);
        self.answer(tag, Outcome::NoAnswer, first_sent, out);
    }

    pub(super) fn on_status(&mut self, index: usize, sent: Sent, remembered: Remembered, out: &mut Output) {
        let shard = self.links[index].shard;
        for unit in sent.units {
            let Some(unit) = self.links[index].remove(unit) else { continue };
            let Work::Read { tag, .. } = unit.work else { continue };
            let Some(lookup) = self.lookups.get_mut(&tag) else { continue };
            lookup.answers.insert(shard, remembered.clone());
            if lookup.answers.len() < lookup.waits_for {
                continue;
            }
            let found = lookup.found();
            self.lookups.remove(&tag);
            let first_sent = self.first_sent.remove(&tag);
            self.answer(tag, Outcome::Found(found), first_sent, out);
        }
    }
}

impl Lookup {
    /// What the answers say together (T2). They are of different moments, but a register keeps what it holds.
    fn found(&self) -> Found {
        // An id may have been given to several transfers, each with registers of its own.
        let all = || self.answers.values();
        let verdicts: Vec<Found> = all().filter_map(|answer| self.found_of(answer.name)).collect();
        let aborted = |found: &&Found| matches!(found, Found::Aborted(_));
        let says = |status| all().any(|answer| answer.status == Some(status));
        if verdicts.contains(&Found::Committed) {
            return Found::Committed;
        }
        // Some shards were asked before the session expired, and others when nothing of it was in doubt any more: one of its
        // transfers may have committed where that is forgotten.
        if says(Status::Expired) {
            return Found::Finished;
        }
        if let Some(found) = [Found::InDoubt, Found::Finished].into_iter().find(|f| verdicts.contains(f)) {
            return found;
        }
        if let Some(found) = verdicts.iter().find(aborted) {
            return *found;
        }
        if says(Status::Finished) {
            return Found::Finished;
        }
        // What one shard has closed may yet be executed in another.
        let never = all().all(|answer| answer.status == Some(Status::Closed));
        if never { Found::Aborted(None) } else { Found::NeverSeen }
    }

    /// The same of one of the transfers; `None` if no shard has a register of it.
    fn found_of(&self, name: Option<Transfer>) -> Option<Found> {
        let votes = || self.answers.iter().filter(|(_, answer)| answer.name == name);
        let statuses = || votes().filter_map(|(_, answer)| answer.status);
        let votes_yes = |shard: &ShardId| votes().any(|(s, a)| s == shard && a.status == Some(Status::Yes));
        let mut participants = votes().filter_map(|(_, answer)| answer.participants);
        if statuses().any(|s| matches!(s, Status::Committed | Status::YesCommitted))
            || participants.any(|all| all.iter().all(votes_yes))
        {
            return Some(Found::Committed);
        }
        // Who has forgotten it knew that it was over: a YES that it has elsewhere was read before.
        let over = |shard: &ShardId| {
            let status = self.answers.get(shard).and_then(|answer| answer.status);
            status == Some(Status::Finished)
        };
        if votes().filter_map(|(_, answer)| answer.participants).any(|all| all.iter().any(over)) {
            return Some(Found::Finished);
        }
        let reasons = statuses().filter_map(|s| if let Status::Aborted(why) = s { Some(why) } else { None });
        let reason = reasons.min();
        if reason.is_some() || statuses().any(|s| s == Status::YesAborted) {
            return Some(Found::Aborted(reason));
        }
        statuses().any(|s| s == Status::Yes).then_some(Found::InDoubt)
    }
}
