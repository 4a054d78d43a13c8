//! One shard as a coordinator sees it: which server leads, what waits to be sent there, and what was sent.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::Timeouts;
use crate::txn::message::Refusal;
use crate::types::{AccountId, Ballot, NodeId, Session, ShardId, Slot, Time, TxnId};

/// Whether a shard can be reached at present.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reach {
    /// Nobody knows yet; servers are being asked.
    Searching,
    /// A majority confirmed this leader when it was last asked.
    Leader { server: NodeId, ballot: Ballot, decided: Slot },
    /// Every server was silent, or said itself that it hears no majority.
    NoQuorum,
}

pub type UnitId = u64;

/// Something that one shard must answer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Unit {
    pub work: Work,
    /// Copies that were sent and not refused: as long as there is one, the work may take effect (T8).
    pub copies: u32,
    pub in_flight: bool,
}

/// In the order in which it is sent: an outcome goes ahead of whatever might meet its lock (T3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Work {
    Outcome {
        group: u64,
    },
    Open,
    /// A session for a client of this coordinator.
    OpenFor {
        tag: u64,
    },
    /// A session of a client is in use.
    Touch {
        session: Session,
    },
    Fence {
        group: u64,
    },
    Close {
        session: Session,
    },
    Expire {
        session: Session,
    },
    Execute {
        group: u64,
    },
    Read {
        tag: u64,
        ask: Ask,
    },
}

/// What is asked of a shard's state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Ask {
    Balance(AccountId),
    Status(TxnId),
}

impl Work {
    pub fn group(self) -> Option<u64> {
        match self {
            Work::Outcome { group } | Work::Fence { group } | Work::Execute { group } => Some(group),
            Work::Open
            | Work::OpenFor { .. }
            | Work::Touch { .. }
            | Work::Close { .. }
            | Work::Expire { .. }
            | Work::Read { .. } => None,
        }
    }
}

/// A request on its way to a server.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Sent {
    pub to: NodeId,
    /// After this it counts as lost.
    pub until: Time,
    /// When to make sure that its server still leads; for reads, which may honestly take long.
    pub check: Option<Time>,
    pub units: Vec<UnitId>,
    /// Blocks ahead of the first unit's (a mark).
    pub ahead: usize,
}

/// What one server said in the current search.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
struct Server {
    connected: bool,
    probed: Option<Time>,
    answered: Option<Time>,
    no_quorum: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Link {
    pub shard: ShardId,
    pub reach: Reach,
    pub units: BTreeMap<UnitId, Unit>,
    /// Units that wait to be sent, in the order of [`Work`], older ones first.
    pub ready: BTreeSet<(Work, UnitId)>,
    /// Unit ids by group.
    by_group: BTreeSet<(u64, UnitId)>,
    /// By request number; within each of the two, later requests expire later. A read may wait for a lock (T6), so it is
    /// given more time than anything else.
    pub sent: BTreeMap<u64, Sent>,
    pub sent_reads: BTreeMap<u64, Sent>,
    /// Requests that count as lost and may be answered all the same, by number.
    pub late: BTreeMap<u64, Sent>,
    /// Nothing is sent before this time (the server was busy).
    pub pause: Time,
    /// Until then its servers count as having no space for new work.
    pub full_until: Time,
    /// When waiting outcomes go even if nothing else does (T3).
    pub outcomes_due: Option<Time>,
    /// Groups that are not finished at this shard, by session and first sequence.
    pub open: BTreeMap<(Session, u64), u64>,
    /// The marks that were last sent, by session: an old session keeps its stragglers, and they need its window to move.
    pub told_marks: BTreeMap<Session, u64>,
    /// The server to ask first, and to campaign if there is no leader.
    pub hint: NodeId,
    servers: BTreeMap<NodeId, Server>,
    search_since: Time,
    probe_due: Time,
    /// Answers to older requests say nothing about who leads now.
    probe_floor: u64,
}

/// However unclear the answers, a search ends as *no quorum* after this many unreachable time-outs.
const SEARCH_LIMIT: u32 = 6;
/// Lost requests whose answers would still be understood.
const LATE_MAX: usize = 1024;

impl Link {
    pub fn new(shard: ShardId, servers: impl Iterator<Item = NodeId>, now: Time) -> Link {
        let servers: BTreeMap<NodeId, Server> = servers.map(|s| (s, Server::default())).collect();
        Link {
            shard,
            reach: Reach::Searching,
            units: BTreeMap::new(),
            ready: BTreeSet::new(),
            by_group: BTreeSet::new(),
            sent: BTreeMap::new(),
            sent_reads: BTreeMap::new(),
            late: BTreeMap::new(),
            pause: Time::default(),
            full_until: Time::default(),
            outcomes_due: None,
            open: BTreeMap::new(),
            told_marks: BTreeMap::new(),
            hint: *servers.keys().next().expect("a cluster has servers"),
            servers,
            search_since: now,
            probe_due: now,
            probe_floor: 0,
        }
    }

    pub fn leader(&self) -> Option<NodeId> {
        match self.reach {
            Reach::Leader { server, .. } => Some(server),
            _ => None,
        }
    }

    pub fn add(&mut self, id: UnitId, work: Work) {
        self.units.insert(id, Unit { work, copies: 0, in_flight: false });
        self.ready.insert((work, id));
        self.by_group.extend(work.group().map(|group| (group, id)));
    }

    /// Carries over what is known of the copies of a unit that this one stands for.
    pub fn set_copies(&mut self, id: UnitId, copies: u32) {
        if let Some(unit) = self.units.get_mut(&id) {
            unit.copies = copies;
        }
    }

    /// The unit is answered, or nobody waits for it any more.
    pub fn remove(&mut self, id: UnitId) -> Option<Unit> {
        let unit = self.units.remove(&id)?;
        self.ready.remove(&(unit.work, id));
        if let Some(group) = unit.work.group() {
            self.by_group.remove(&(group, id));
        }
        Some(unit)
    }

    /// Puts a unit that was sent back into line. `refused` says that this copy was not proposed.
    pub fn requeue(&mut self, id: UnitId, refused: bool) {
        if let Some(unit) = self.units.get_mut(&id) {
            unit.in_flight = false;
            unit.copies -= u32::from(refused);
            self.ready.insert((unit.work, id));
        }
    }

    /// The oldest group of a session that is not finished at this shard: its first sequence, which is the mark (T7), and
    /// the group.
    pub fn oldest(&self, session: Session) -> Option<(u64, u64)> {
        let mut groups = self.open.range((session, 0)..=(session, u64::MAX));
        groups.next().map(|((_, first), group)| (*first, *group))
    }

    /// Sessions with groups that are not finished at this shard.
    pub fn open_sessions(&self) -> BTreeSet<Session> {
        let mut sessions = BTreeSet::new();
        let mut from = (Session(0), 0);
        while let Some(((session, _), _)) = self.open.range(from..).next() {
            sessions.insert(*session);
            from = (Session(session.0 + 1), 0);
        }
        sessions
    }

    /// Takes out a request that is answered or given up.
    pub fn take_sent(&mut self, request: u64) -> Option<Sent> {
        self.sent.remove(&request).or_else(|| self.sent_reads.remove(&request))
    }

    /// Remembers a request that counts as lost. The oldest are forgotten first.
    pub fn keep_late(&mut self, request: u64, sent: Sent) {
        self.late.insert(request, sent);
        while self.late.len() > LATE_MAX {
            self.late.pop_first();
        }
    }

    /// Requests whose time is over, or that went to `server`.
    pub fn lost(&self, now: Time, server: Option<NodeId>) -> Vec<u64> {
        let over = |(request, s): (&u64, &Sent)| (s.until <= now).then_some(*request);
        match server {
            Some(server) => {
                let all = self.sent.iter().chain(&self.sent_reads);
                all.filter(|(_, s)| s.to == server).map(|(request, _)| *request).collect()
            }
            None => [&self.sent, &self.sent_reads]
                .into_iter()
                .flat_map(|sent| sent.iter().map_while(over))
                .collect(),
        }
    }

    /// Changes what a waiting unit asks for, within its group.
    pub fn replace(&mut self, id: UnitId, work: Work) {
        if let Some(unit) = self.units.get_mut(&id) {
            self.ready.remove(&(unit.work, id));
            *unit = Unit { work, copies: 0, in_flight: false };
            self.ready.insert((work, id));
        }
    }

    pub fn unit_of(&self, group: u64, wanted: impl Fn(Work) -> bool) -> Option<UnitId> {
        let ids = self.by_group.range((group, 0)..=(group, UnitId::MAX)).map(|(_, id)| *id);
        ids.into_iter().find(|id| wanted(self.units[id].work))
    }

    // ---- finding the leader ----

    /// Starts asking all servers. What was learned before `next_request` was sent counts no longer.
    pub fn search(&mut self, now: Time, next_request: u64) {
        self.probe_floor = next_request;
        self.reach = Reach::Searching;
        self.search_since = now;
        self.probe_due = now;
        self.told_marks.clear();
        for server in self.servers.values_mut() {
            *server = Server { connected: server.connected, ..Server::default() };
        }
    }

    fn contains(&self, server: NodeId) -> bool {
        self.servers.contains_key(&server)
    }

    pub fn connected(&mut self, server: NodeId, connected: bool) {
        if !connected {
            self.late.retain(|_, sent| sent.to != server);
        }
        if let Some(s) = self.servers.get_mut(&server) {
            *s = Server { connected, ..Server::default() };
            if connected {
                self.probe_due = Time::default();
            }
        }
    }

    /// A server says that it leads, confirmed after `request` reached it.
    pub fn found(&mut self, request: u64, server: NodeId, ballot: Ballot, decided: Slot) -> bool {
        let newer = match self.reach {
            Reach::Leader { ballot: known, .. } => ballot > known,
            _ => true,
        };
        if request < self.probe_floor || !self.contains(server) || !newer {
            return false;
        }
        self.reach = Reach::Leader { server, ballot, decided };
        true
    }

    /// A probe was answered by somebody who does not lead.
    pub fn probe_refused(&mut self, now: Time, server: NodeId, why: &Refusal) {
        if let Some(s) = self.servers.get_mut(&server) {
            s.answered = Some(now);
            s.no_quorum = *why == Refusal::NoQuorum;
        }
    }

    /// Servers to probe now, each with whether it is connected; empty until the next probe is due.
    pub fn probes(&mut self, now: Time, timeouts: &Timeouts) -> Vec<(NodeId, bool)> {
        if self.leader().is_some() || self.probe_due > now {
            return Vec::new();
        }
        let interval = match self.reach {
            Reach::NoQuorum => timeouts.heartbeat() * 2,
            _ => timeouts.heartbeat() / 4,
        };
        self.probe_due = now + interval;
        // A leader keeps a probe until it is confirmed; asking again meanwhile tells nothing.
        let patience = timeouts.heartbeat() * 2;
        let mut due = Vec::new();
        for (id, server) in &mut self.servers {
            let waiting = server.probed.is_some_and(|probed| {
                server.answered.is_none_or(|a| a < probed) && now.since(probed) < patience
            });
            if server.connected && !waiting {
                server.probed = Some(now);
                due.push((*id, true));
            } else if !server.connected {
                due.push((*id, false));
            }
        }
        due
    }

    /// Whether a server that leads nobody should campaign when this probe reaches it: the preferred one at once, the
    /// others only when that did not help.
    pub fn may_campaign(&self, now: Time, server: NodeId, timeouts: &Timeouts) -> bool {
        server == self.hint || now.since(self.search_since) >= timeouts.election()
    }

    /// Whether the search has shown that no leader can be had (T8).
    pub fn lacks_quorum(&self, now: Time, timeouts: &Timeouts) -> bool {
        let waited = now.since(self.search_since);
        // Long enough for followers to miss their leader and to ask each other.
        if self.reach != Reach::Searching || waited < timeouts.election() * 2 {
            return false;
        }
        let negative = |s: &Server| {
            let silent = now.since(s.answered.unwrap_or(self.search_since)) >= timeouts.unreachable();
            !s.connected || s.no_quorum || silent
        };
        self.servers.values().all(negative) || waited >= timeouts.unreachable() * SEARCH_LIMIT
    }

    /// When this link has something to do if nothing arrives. `idle` links do not probe.
    pub fn next_deadline(&self, idle: bool) -> Option<Time> {
        let lost = [&self.sent, &self.sent_reads]
            .into_iter()
            .filter_map(|s| s.values().next())
            .map(|s| s.until)
            .min();
        let probe = (self.leader().is_none() && !idle).then_some(self.probe_due);
        let check = self.sent_reads.values().filter_map(|s| s.check).min();
        let outcomes = self.outcomes_due.filter(|_| self.leader().is_some()).map(|due| due.max(self.pause));
        let pause = (self.pause > Time::default()).then_some(self.pause);
        [lost, check, probe, outcomes, pause].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server whose port is closed refuses at once: the next attempt has to wait for its turn.
    #[test]
    fn a_refused_connection_is_not_tried_again_at_once() {
        let (timeouts, now) = (Timeouts::default(), Time(1_000_000));
        let mut link = Link::new(ShardId(1), [NodeId(1)].into_iter(), now);
        assert_eq!(link.probes(now, &timeouts), [(NodeId(1), false)]);
        link.connected(NodeId(1), false);
        assert_eq!(link.probes(now, &timeouts), []);
        assert!(link.next_deadline(false).is_some_and(|at| at > now));
    }

    /// What belongs to a group was looked for among everything that waits for the shard, once for each unit dropped. The
    /// index that is used instead has to say the same.
    #[test]
    fn the_units_of_a_group_are_found_without_looking_at_the_others() {
        let mut link = Link::new(ShardId(1), [NodeId(1)].into_iter(), Time(1_000_000));
        for id in 0..300 {
            let group = id % 100;
            match id / 100 {
                0 => link.add(id, Work::Execute { group }),
                1 => link.add(id, Work::Outcome { group }),
                _ => link.add(id, Work::Read { tag: id, ask: Ask::Balance(AccountId(1)) }),
            }
        }
        link.remove(1);
        link.remove(250);
        link.replace(2, Work::Fence { group: 2 });
        assert_eq!((link.units.len(), link.by_group.len()), (298, 199));
        for (group, units) in [(0, vec![0, 100]), (1, vec![101]), (2, vec![2, 102]), (100, vec![])] {
            let mut found = Vec::new();
            while let Some(id) = link.unit_of(group, |_| true) {
                assert_eq!(link.remove(id).and_then(|u| u.work.group()), Some(group));
                found.push(id);
            }
            assert_eq!(found, units);
        }
        assert_eq!(link.unit_of(3, |w| matches!(w, Work::Outcome { .. })), Some(103));
        assert_eq!(link.by_group.len(), 194);
    }

    const START: Time = Time(10_000_000);
    const S1: NodeId = NodeId(1);
    const S2: NodeId = NodeId(2);
    const S3: NodeId = NodeId(3);

    /// A shard of three servers, all connected, whose search begins now.
    fn three() -> Link {
        let mut link = Link::new(ShardId(1), [S1, S2, S3].into_iter(), START);
        [S1, S2, S3].iter().for_each(|s| link.connected(*s, true));
        link.search(START, 10);
        link
    }

    fn after(millis: u64) -> Time {
        START + std::time::Duration::from_millis(millis)
    }

    fn leads(link: &mut Link, request: u64, server: NodeId, round: u64) -> bool {
        link.found(request, server, Ballot::new(round, server), Slot(1))
    }

    /// Who led before the search began says nothing about who leads now, and of two leaders the later one does.
    #[test]
    fn a_leader_is_believed_if_it_was_asked_lately_and_is_the_newest() {
        let mut link = three();
        assert!(!leads(&mut link, 9, S1, 5), "asked before the search");
        assert!(!leads(&mut link, 10, NodeId(4), 5), "of another shard");
        assert_eq!(link.leader(), None);
        assert!(leads(&mut link, 10, S2, 5));
        assert!(!leads(&mut link, 11, S2, 5), "known");
        assert!(!leads(&mut link, 11, S1, 4), "of an older ballot");
        assert_eq!(link.leader(), Some(S2));
        assert!(leads(&mut link, 11, S3, 6));
        assert_eq!(link.leader(), Some(S3));
        // After a search an older ballot counts again: the newer one may never have come to anything.
        link.search(START, 12);
        assert!(!leads(&mut link, 11, S3, 6) && leads(&mut link, 12, S1, 4));
    }

    /// Heartbeats are 50 ms apart: a search asks every 12.5 ms whoever has answered, and after 100 ms whoever has not.
    #[test]
    fn servers_are_asked_again_when_they_have_answered_or_seem_to_have_missed_it() {
        let timeouts = Timeouts::default();
        let mut link = three();
        link.connected(S3, false);
        assert_eq!(link.probes(START, &timeouts), [(S1, true), (S2, true), (S3, false)]);
        assert_eq!(link.next_deadline(false), Some(START + timeouts.heartbeat() / 4));
        link.probe_refused(after(5), S1, &Refusal::NotLeader(None));
        assert_eq!(link.probes(after(12), &timeouts), []);
        assert_eq!(link.probes(after(13), &timeouts), [(S1, true), (S3, false)]);
        assert_eq!(link.probes(after(99), &timeouts), [(S3, false)]);
        assert_eq!(link.probes(after(112), &timeouts), [(S2, true), (S3, false)]);
        // An answer of the same moment is an answer to it.
        link.probe_refused(after(112), S2, &Refusal::NotLeader(None));
        assert_eq!(link.probes(after(125), &timeouts), [(S1, true), (S2, true), (S3, false)]);
        // A connection that stands is used at once.
        link.connected(S3, true);
        assert_eq!(link.probes(after(126), &timeouts), [(S3, true)]);
        // Without a majority there is no hurry.
        link.reach = Reach::NoQuorum;
        link.probe_refused(after(126), S1, &Refusal::NoQuorum);
        assert_eq!(link.probes(after(139), &timeouts), [(S1, true)]);
        assert_eq!(link.next_deadline(false), Some(after(139) + timeouts.heartbeat() * 2));
        assert_eq!(link.next_deadline(true), None, "nobody waits for it");
        assert!(leads(&mut link, 10, S1, 1));
        assert_eq!(link.probes(after(999), &timeouts), [], "a leader is known");
        assert_eq!(link.next_deadline(false), None);
    }

    #[test]
    fn the_preferred_server_campaigns_at_once_and_the_others_when_that_did_not_help() {
        let timeouts = Timeouts::default();
        let mut link = three();
        link.hint = S2;
        let campaign = |at| [S1, S2, S3].map(|s| link.may_campaign(at, s, &timeouts));
        assert_eq!(campaign(after(299)), [false, true, false]);
        assert_eq!(campaign(after(300)), [true, true, true]);
    }

    /// T8: *no quorum* needs two election time-outs of asking, and every server gone, silent for long, or itself without a
    /// majority; or an endless search.
    #[test]
    fn a_search_ends_when_no_server_has_anything_to_hope_for() {
        let timeouts = Timeouts::default();
        let lacks = |link: &Link, millis| link.lacks_quorum(after(millis), &timeouts);
        let mut link = three();
        link.connected(S1, false);
        assert!(!lacks(&link, 600), "two were not heard yet, which takes longer");
        link.probe_refused(after(590), S2, &Refusal::NoQuorum);
        assert!(!lacks(&link, 600));
        link.probe_refused(after(590), S3, &Refusal::NoQuorum);
        assert!(!lacks(&link, 599) && lacks(&link, 600));
        link.probe_refused(after(600), S3, &Refusal::NotLeader(None));
        assert!(!lacks(&link, 600) && !lacks(&link, 2099), "S3 hears a majority");
        assert!(lacks(&link, 2100), "but was silent since");
        // Silence from the beginning on counts from there.
        let silent = three();
        assert!(!lacks(&silent, 1499) && lacks(&silent, 1500));
        // They go on saying that somebody will lead.
        let mut endless = three();
        for server in [S1, S2, S3] {
            endless.probe_refused(after(8990), server, &Refusal::NotLeader(None));
        }
        assert!(!lacks(&endless, 8999) && lacks(&endless, 9000));
        assert!(leads(&mut endless, 10, S1, 1));
        assert!(!lacks(&endless, 9999), "there is one");
    }

    #[test]
    fn a_link_wakes_for_whatever_comes_first() {
        let mut link = three();
        assert!(leads(&mut link, 10, S1, 1));
        let sent = |until, check| Sent { to: S1, until, check, units: vec![], ahead: 0 };
        let due = |link: &Link| link.next_deadline(false);
        link.sent.insert(10, sent(after(70), None));
        link.sent.insert(11, sent(after(80), None));
        assert_eq!(due(&link), Some(after(70)));
        link.sent_reads.insert(12, sent(after(90), Some(after(60))));
        assert_eq!(due(&link), Some(after(60)), "whether the leader of a read still leads");
        link.outcomes_due = Some(after(50));
        assert_eq!(due(&link), Some(after(50)));
        link.pause = after(55);
        assert_eq!(due(&link), Some(after(55)), "outcomes wait for a busy server, too");
        assert_eq!(link.lost(after(70), None), [10]);
        assert_eq!(link.lost(after(95), None), [10, 11, 12]);
        assert_eq!((link.lost(START, Some(S1)), link.lost(START, Some(S2))), (vec![10, 11, 12], vec![]));
    }
}
