//! The pure coordinator: batches transactions, drives two-phase commit, finds leaders, retries under the same id, and
//! finds out what became of transactions that nobody knew about.
//!
//! Everything it is given in one turn travels together: one block per set of participants, one frame per shard.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::bank::command::Range;
use crate::bank::{BlockResult, Status, validate};
use crate::config::{Limits, Timeouts, Topology};
use crate::txn::batch::{Queue, Route};
use crate::txn::group::Group;
use crate::txn::link::{Ask, Link, Reach, Sent, Unit, UnitId, Work};
use crate::txn::message::{Refusal, Request, Response};
use crate::txn::named::{Lookup, NamedWish, Remembered};
use crate::txn::port::{Answer, Event, Input, Op, Outcome, Output};
use crate::txn::retire::Retirement;
use crate::types::{NodeId, Reason, Session, ShardId, Time, Transfer, TxnId};

/// How long a server that was busy is left alone.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Life {
    /// Recovers on behalf of others and has no transactions of its own.
    Recoverer,
    Unopened,
    Opening(ShardId),
    Open(Session),
}

/// See the module documentation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Coordinator {
    pub(super) topology: Topology,
    pub(super) timeouts: Timeouts,
    pub(super) limits: Limits,
    pub(super) life: Life,
    /// It asks servers for their leader only while it has something for them.
    pub(super) lazy: bool,
    pub(super) links: Vec<Link>,
    pub(super) groups: BTreeMap<u64, Group>,
    /// Valid transfers that have no sequence yet.
    pub(super) waiting: BTreeMap<Route, Queue>,
    confirms: Vec<u64>,
    settles: Vec<u64>,
    /// By tag: the shards that had no session for a client.
    pub(super) opening: BTreeMap<u64, BTreeSet<ShardId>>,
    /// By tag.
    pub(super) lookups: BTreeMap<u64, Lookup>,
    /// Sessions of clients that were opened, and when their issuers last heard of them from here.
    pub(super) known_sessions: BTreeMap<Session, Time>,
    /// Those whose issuers are told of them, and what waits for the answer.
    pub(super) touching: BTreeMap<Session, Vec<NamedWish>>,
    pub(super) recovering: BTreeSet<TxnId>,
    pub(super) retiring: BTreeMap<Session, Retirement>,
    /// Where to look first for a shard that opens a session, and not before when.
    pub(super) open_from: usize,
    pub(super) open_after: Time,
    /// Since when no shard has had room for a session that is wanted.
    pub(super) crowded_since: Option<Time>,
    pub(super) first_sent: BTreeMap<u64, Time>,
    pub(super) next_seq: u64,
    next_group: u64,
    next_unit: UnitId,
    pub(super) next_request: u64,
}

impl Coordinator {
    /// A client's coordinator. It opens a session of its own through the log of some shard.
    pub fn new(topology: Topology, timeouts: Timeouts, now: Time) -> Coordinator {
        let links = topology.shards().map(|s| Link::new(s, topology.servers_of(s), now)).collect();
        Coordinator {
            topology,
            timeouts,
            limits: Limits::default(),
            life: Life::Unopened,
            lazy: false,
            links,
            groups: BTreeMap::new(),
            waiting: BTreeMap::new(),
            confirms: Vec::new(),
            settles: Vec::new(),
            opening: BTreeMap::new(),
            lookups: BTreeMap::new(),
            known_sessions: BTreeMap::new(),
            touching: BTreeMap::new(),
            recovering: BTreeSet::new(),
            retiring: BTreeMap::new(),
            open_from: 0,
            open_after: Time::default(),
            crowded_since: None,
            first_sent: BTreeMap::new(),
            next_seq: 1,
            next_group: 1,
            next_unit: 1,
            next_request: 1,
        }
    }

    /// The coordinator inside a server: it only recovers.
    pub fn recoverer(topology: Topology, timeouts: Timeouts, now: Time) -> Coordinator {
        Coordinator { life: Life::Recoverer, ..Coordinator::hosted(topology, timeouts, now) }
    }

    /// One that a server hosts for clients of its own, and that leaves the others in peace while there are none.
    pub fn hosted(topology: Topology, timeouts: Timeouts, now: Time) -> Coordinator {
        Coordinator { lazy: true, ..Coordinator::new(topology, timeouts, now) }
    }

    /// The same with other bounds than the usual ones.
    pub fn with_limits(self, limits: Limits) -> Coordinator {
        Coordinator { limits, ..self }
    }

    /// The session of this coordinator, once it is open.
    pub fn session(&self) -> Option<Session> {
        match self.life {
            Life::Open(session) => Some(session),
            _ => None,
        }
    }

    /// When a turn is wanted even if nothing arrives.
    pub fn next_deadline(&self) -> Option<Time> {
        let opens = self.life == Life::Unopened && !self.waiting.is_empty();
        let links = self.links.iter().filter_map(|l| l.next_deadline(self.is_idle(l)));
        let crowded =
            self.crowded_since.filter(|_| !self.waiting.is_empty()).map(|at| at + self.timeouts.read());
        links.chain(opens.then_some(self.open_after)).chain(crowded).min()
    }

    /// Nobody waits for anything that this shard could answer.
    fn is_idle(&self, link: &Link) -> bool {
        self.lazy && link.units.is_empty() && self.waiting.is_empty()
    }

    /// The single entry point.
    pub fn step(&mut self, now: Time, input: Input, out: &mut Output) {
        match input {
            Input::Submit { tag, op } => self.submit(now, tag, op, out),
            Input::Response { from, response } => self.on_response(now, from, response, out),
            Input::Connected(server) => self.link_of(server).connected(server, true),
            Input::Disconnected(server) => self.on_disconnected(now, server, out),
            Input::Hint(server) => self.link_of(server).hint = server,
            Input::Recover { id, name, participants, home } => {
                self.recover(now, id, name, participants, home);
            }
            Input::Retire { session, live } => self.retire(now, session, live, out),
            Input::Abandon => self.abandon(out),
            Input::TurnEnd => self.turn_end(now, out),
        }
    }

    // ---- what is asked for ----

    fn submit(&mut self, now: Time, tag: u64, op: Op, out: &mut Output) {
        match op {
            Op::Transfer(transfer) => match validate(&self.topology, &transfer) {
                Err(reason) => self.answer(tag, Outcome::Aborted(reason), None, out),
                Ok((from, to)) => {
                    let route = Route::new(from, to);
                    if self.lazy {
                        // Whichever shard answers first opens the session.
                        let opens = self.session().is_none() && self.waiting.is_empty();
                        let all =
                            self.topology.shards().filter(|shard| opens || route.shards().contains(shard));
                        all.for_each(|shard| self.search_if_idle(now, shard));
                    }
                    self.waiting.entry(route).or_default().push(tag, transfer);
                }
            },
            Op::Read(account) => match self.topology.shard_of(account) {
                None => self.answer(tag, Outcome::Aborted(Reason::UnknownAccount), None, out),
                Some(shard) if self.lazy && self.links[shard.index()].units.is_empty() => {
                    self.search_if_idle(now, shard);
                    self.add_unit(shard, Work::Read { tag, ask: Ask::Balance(account) });
                }
                Some(shard) if self.links[shard.index()].reach == Reach::NoQuorum => {
                    self.answer(tag, Outcome::Aborted(Reason::NoQuorum), None, out);
                }
                Some(shard) => {
                    self.add_unit(shard, Work::Read { tag, ask: Ask::Balance(account) });
                }
            },
            Op::Open => self.open_for(now, tag, out),
            Op::Named { id, transfer } => self.submit_named(now, tag, id, transfer, out),
            Op::Lookup(id) => self.submit_lookup(now, tag, id, out),
            Op::Confirm { anew } => {
                for link in &mut self.links {
                    if anew || link.reach != Reach::NoQuorum {
                        link.search(now, self.next_request);
                    }
                }
                self.confirms.push(tag);
            }
            Op::Settle => self.settles.push(tag),
        }
    }

    fn recover(
        &mut self,
        now: Time,
        id: TxnId,
        name: Option<Transfer>,
        participants: [ShardId; 2],
        home: ShardId,
    ) {
        // Whoever is refused here asks again after its next time-out.
        if self.recovering.len() >= self.limits.recoveries || !self.recovering.insert(id) {
            return;
        }
        let range = Range { session: id.session, first: id.seq, count: 1 };
        let mut group = Group::new(range, participants.to_vec(), Vec::from_iter(name), Vec::new());
        group.named = name.is_some();
        group.home = Some(home);
        group.fencing = true;
        let gid = self.add_group(group);
        // The others first, this shard last: its own answer must be younger than theirs (T7).
        for shard in participants.into_iter().filter(|p| *p != home) {
            self.search_if_idle(now, shard);
            self.add_unit(shard, Work::Fence { group: gid });
        }
    }

    /// A link that nobody used for a while knows nothing.
    pub(super) fn search_if_idle(&mut self, now: Time, shard: ShardId) {
        let link = &mut self.links[shard.index()];
        if link.units.is_empty() && link.leader().is_none() {
            link.search(now, self.next_request);
        }
    }

    pub(super) fn add_group(&mut self, group: Group) -> u64 {
        let gid = self.next_group;
        self.next_group += 1;
        self.groups.insert(gid, group);
        gid
    }

    pub(super) fn add_unit(&mut self, shard: ShardId, work: Work) -> UnitId {
        let id = self.next_unit;
        self.next_unit += 1;
        self.links[shard.index()].add(id, work);
        id
    }

    // ---- a turn ----

    fn turn_end(&mut self, now: Time, out: &mut Output) {
        for index in 0..self.links.len() {
            self.expire_lost(now, index, out);
            // Nobody was asked on behalf of nobody.
            let asks = !self.is_idle(&self.links[index]);
            if asks && self.links[index].lacks_quorum(now, &self.timeouts) {
                self.enter_no_quorum(now, index, out);
            }
        }
        self.form_groups(now, out);
        for index in 0..self.links.len() {
            self.flush(now, index, out);
            self.probe(now, index, out);
        }
        self.answer_waiters(out);
    }

    fn probe(&mut self, now: Time, index: usize, out: &mut Output) {
        if self.is_idle(&self.links[index]) {
            return;
        }
        for (server, connected) in self.links[index].probes(now, &self.timeouts) {
            if connected {
                let campaign = self.links[index].may_campaign(now, server, &self.timeouts);
                let request = self.request_number();
                out.send.push((server, Request::Probe { request, campaign }));
            } else {
                out.connect.push(server);
            }
        }
    }

    fn answer_waiters(&mut self, out: &mut Output) {
        if !self.confirms.is_empty() && self.links.iter().all(|l| l.reach != Reach::Searching) {
            let reaches: Vec<Reach> = self.links.iter().map(|l| l.reach).collect();
            for tag in std::mem::take(&mut self.confirms) {
                self.answer(tag, Outcome::Confirmed(reaches.clone()), None, out);
            }
        }
        let settled = |l: &Link| l.units.is_empty() || l.reach == Reach::NoQuorum;
        if !self.settles.is_empty() && self.waiting.is_empty() && self.links.iter().all(settled) {
            for tag in std::mem::take(&mut self.settles) {
                self.answer(tag, Outcome::Settled, None, out);
            }
        }
    }

    // ---- answers ----

    fn on_response(&mut self, now: Time, from: NodeId, response: Response, out: &mut Output) {
        let index = self.topology.shard_of_server(from).index();
        let sent = self.links[index].take_sent(response.number());
        if sent.is_none()
            && let Some(late) = self.links[index].late.remove(&response.number())
        {
            return self.on_late(now, index, late, response, out);
        }
        match (response, sent) {
            (Response::Leading { request, ballot, decided }, _) => {
                if self.links[index].found(request, from, ballot, decided) {
                    let shard = self.links[index].shard;
                    out.events.push(Event::LeaderFound { shard, leader: from, ballot });
                    self.leave_old_leader(now, index, from, out);
                }
            }
            (Response::Refused { why, .. }, None) => self.links[index].probe_refused(now, from, &why),
            // An answer to a request that nobody waits for any more.
            (_, None) => {}
            (Response::Done { results, .. }, Some(sent)) => self.on_done(now, index, sent, results, out),
            (Response::Balance { balance, .. }, Some(sent)) => self.on_balance(index, sent, balance, out),
            (Response::Status { status, name, participants, .. }, Some(sent)) => {
                self.on_status(index, sent, Remembered::new(status, name, participants), out);
            }
            (Response::Refused { why, .. }, Some(sent)) => self.on_refused(now, index, sent, why, out),
            (Response::Unsure { .. }, Some(sent)) => {
                self.give_up(now, index, sent, false, out);
                self.links[index].search(now, self.next_request);
            }
        }
    }

    fn on_balance(&mut self, index: usize, sent: Sent, balance: Result<u64, Reason>, out: &mut Output) {
        for id in sent.units {
            let unit = self.links[index].remove(id);
            if let Some(Work::Read { tag, .. }) = unit.map(|u| u.work) {
                let outcome = match balance {
                    Ok(balance) => Outcome::Balance(balance),
                    Err(reason) => Outcome::Aborted(reason),
                };
                let first_sent = self.first_sent.remove(&tag);
                self.answer(tag, outcome, first_sent, out);
            }
        }
    }

    /// The answer to a request that counts as lost, whose units were sent again. What it says is as true as ever: if it
    /// were thrown away, servers that need longer than this coordinator waits would work for nothing.
    fn on_late(&mut self, now: Time, index: usize, late: Sent, response: Response, out: &mut Output) {
        match response {
            Response::Balance { balance, .. } => self.on_balance(index, late, balance, out),
            Response::Status { status, name, participants, .. } => {
                self.on_status(index, late, Remembered::new(status, name, participants), out);
            }
            Response::Done { results, .. } if results.len() == late.ahead + late.units.len() => {
                for (id, result) in late.units.iter().zip(results.into_iter().skip(late.ahead)) {
                    let work = self.links[index].units.get(id).map(|u| u.work);
                    // Whatever else it says, the copy that was sent since will be answered as well.
                    if work.is_some_and(|work| self.ends(work, &result))
                        && let Some(unit) = self.links[index].remove(*id)
                    {
                        self.on_result(now, index, late.to, unit, result, out);
                    }
                }
            }
            _ => {}
        }
    }

    /// Whether a result is all that was asked for.
    fn ends(&self, work: Work, result: &BlockResult) -> bool {
        match work {
            Work::Open | Work::OpenFor { .. } => matches!(result, BlockResult::Opened(_)),
            Work::Outcome { .. } | Work::Touch { .. } | Work::Close { .. } | Work::Expire { .. } => true,
            Work::Fence { group } | Work::Execute { group } => {
                let count = self.groups.get(&group).map(|g| g.range.count as usize);
                result.unpack().is_some_and(|votes| {
                    Some(votes.len()) == count && votes.iter().all(|v| Group::is_vote(*v))
                })
            }
            Work::Read { .. } => false,
        }
    }

    fn on_refused(&mut self, now: Time, index: usize, sent: Sent, why: Refusal, out: &mut Output) {
        if why == Refusal::StorageFull {
            return self.on_storage_full(now, index, sent, out);
        }
        let from = sent.to;
        if let Refusal::Malformed(what) = why {
            out.events.push(Event::Protocol { from, what: format!("it calls a request malformed: {what}") });
            self.give_up(now, index, sent, true, out);
            self.links[index].pause = now + self.timeouts.unreachable();
            return;
        }
        self.give_up(now, index, sent, true, out);
        let link = &mut self.links[index];
        match why {
            Refusal::Busy => link.pause = now + BUSY_PAUSE,
            Refusal::NotLeader(known) => {
                if let Some(leader) = known {
                    link.hint = leader;
                }
                link.search(now, self.next_request);
            }
            _ => link.search(now, self.next_request),
        }
    }

    /// A request is not going to be answered; its units wait to be sent again.
    pub(super) fn give_up(&mut self, now: Time, index: usize, sent: Sent, refused: bool, out: &mut Output) {
        out.events.push(Event::Retrying { shard: self.links[index].shard, units: sent.units.len() });
        if sent.ahead > 0 {
            // The mark may not have arrived, and without it the shard's window does not move.
            self.links[index].told_marks.clear();
        }
        for id in sent.units {
            self.links[index].requeue(id, refused);
            self.reconsider(now, index, id, out);
        }
    }

    /// A unit waits again: what it asks for, and what its client may be told, is no longer what it was.
    fn reconsider(&mut self, now: Time, index: usize, id: UnitId, out: &mut Output) {
        let Some(work) = self.links[index].units.get(&id).map(|u| u.work) else { return };
        let Some(gid) = work.group() else { return };
        let Some(group) = self.groups.get(&gid) else { return };
        if group.fencing && matches!(work, Work::Execute { .. }) {
            // T8: once it was given up as unknown it is fenced, never executed.
            self.links[index].replace(id, Work::Fence { group: gid });
        } else if group.commits.is_none() && self.obstacle_of(now, group).is_some() {
            self.evaluate(now, gid, out);
        }
    }

    fn on_disconnected(&mut self, now: Time, server: NodeId, out: &mut Output) {
        let index = self.topology.shard_of_server(server).index();
        let link = &mut self.links[index];
        link.connected(server, false);
        let was_leader = link.leader() == Some(server);
        for request in link.lost(now, Some(server)) {
            if let Some(sent) = self.links[index].take_sent(request) {
                self.give_up(now, index, sent, false, out);
            }
        }
        if was_leader {
            self.links[index].search(now, self.next_request);
        }
    }

    /// Reads that wait at another server than the leader are asked again here; asking twice does no harm.
    fn leave_old_leader(&mut self, now: Time, index: usize, leader: NodeId, out: &mut Output) {
        let reads = &self.links[index].sent_reads;
        let left: Vec<u64> =
            reads.iter().filter(|(_, s)| s.to != leader).map(|(request, _)| *request).collect();
        for request in left {
            if let Some(sent) = self.links[index].take_sent(request) {
                self.give_up(now, index, sent, false, out);
            }
        }
    }

    /// Requests that were not answered for too long count as lost. A read may wait long for a lock (T6), or its leader
    /// may stand still: once, the servers are asked who leads.
    fn expire_lost(&mut self, now: Time, index: usize, out: &mut Output) {
        let link = &mut self.links[index];
        let leader = link.leader();
        let mut doubtful = false;
        for sent in link.sent_reads.values_mut().filter(|s| s.check.is_some_and(|at| at <= now)) {
            sent.check = None;
            doubtful |= leader == Some(sent.to);
        }
        if doubtful {
            link.search(now, self.next_request);
        }
        for request in self.links[index].lost(now, None) {
            let Some(sent) = self.links[index].take_sent(request) else { continue };
            self.links[index].keep_late(request, sent.clone());
            let was_leader = self.links[index].leader() == Some(sent.to);
            self.give_up(now, index, sent, false, out);
            if was_leader {
                self.links[index].search(now, self.next_request);
            }
        }
    }

    fn on_done(&mut self, now: Time, index: usize, sent: Sent, results: Vec<BlockResult>, out: &mut Output) {
        if results.len() != sent.ahead + sent.units.len() {
            let what = format!("{} results for {} blocks", results.len(), sent.ahead + sent.units.len());
            out.events.push(Event::Protocol { from: sent.to, what });
            self.give_up(now, index, sent, false, out);
            self.links[index].pause = now + BUSY_PAUSE;
            return;
        }
        for (id, result) in sent.units.iter().zip(results.into_iter().skip(sent.ahead)) {
            if let Some(unit) = self.links[index].remove(*id) {
                self.on_result(now, index, sent.to, unit, result, out);
            }
        }
    }

    fn on_result(
        &mut self,
        now: Time,
        index: usize,
        from: NodeId,
        unit: Unit,
        result: BlockResult,
        out: &mut Output,
    ) {
        let (shard, work) = (self.links[index].shard, unit.work);
        let gid = match (work, &result) {
            (Work::Open, BlockResult::Opened(session)) => {
                self.life = Life::Open(*session);
                self.crowded_since = None;
                out.events.push(Event::SessionOpened(*session));
                return;
            }
            (Work::Open, BlockResult::Statuses { .. }) => return self.no_room(now),
            (Work::OpenFor { tag }, BlockResult::Opened(session)) => {
                return self.opened_for(now, tag, *session, out);
            }
            (Work::Touch { session }, _) => return self.on_touched(now, session, &result, out),
            (Work::OpenFor { tag }, BlockResult::Statuses { .. }) => {
                return self.open_elsewhere(now, tag, shard, out);
            }
            (Work::Close { session } | Work::Expire { session }, _) => {
                return self.on_retired(shard, session, work, result, out);
            }
            (Work::Outcome { group } | Work::Fence { group } | Work::Execute { group }, _) => group,
            _ => {
                let what = format!("{result:?} does not answer {work:?}");
                out.events.push(Event::Protocol { from, what });
                return;
            }
        };
        let Some(group) = self.groups.get_mut(&gid) else { return };
        let part = group.index(shard);
        if let Work::Outcome { .. } = work {
            group.confirmed[part] = true;
            if group.confirmed.iter().all(|c| *c) {
                self.finish(gid);
            }
            return;
        }
        match result.unpack() {
            Some(votes)
                if votes.len() == group.range.count as usize && votes.iter().all(|v| Group::is_vote(*v)) =>
            {
                let votes = self.weigh(gid, part, unit, votes, out);
                if let Some(group) = self.groups.get_mut(&gid) {
                    group.votes[part] = Some(votes);
                }
                self.evaluate(now, gid, out);
            }
            votes => {
                // Beyond the window, or nonsense: registers answer a repetition. T8: only a copy of which nothing took
                // effect is one less; the others are not forgotten.
                let nothing = votes.is_some_and(|votes| votes.iter().all(|v| *v == Status::Busy));
                self.links[index].pause = now + BUSY_PAUSE;
                let id = self.add_unit(shard, work);
                self.links[index].set_copies(id, unit.copies.saturating_sub(u32::from(nothing)));
                self.reconsider(now, index, id, out);
            }
        }
    }

    pub(super) fn answer(&mut self, tag: u64, outcome: Outcome, first_sent: Option<Time>, out: &mut Output) {
        out.answers.push(Answer { tag, outcome, first_sent });
    }

    fn link_of(&mut self, server: NodeId) -> &mut Link {
        &mut self.links[self.topology.shard_of_server(server).index()]
    }
}
