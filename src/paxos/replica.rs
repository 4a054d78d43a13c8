//! One server's part in Multi-Paxos: the acceptor, the leader's accept rounds, and all control flow.
//!
//! Campaigns (pre-vote, phase 1, taking over) stand in `election.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::limits::RECORD_BYTES;
use crate::config::{Limits, Timeouts};
use crate::paxos::leader::Leader;
use crate::paxos::log::Log;
use crate::paxos::membership::{LOST_DISK_VOUCHED, Membership};
use crate::paxos::message::*;
use crate::paxos::output::{Event, Output, Purpose, Standing};
use crate::paxos::repair::Repair;
use crate::paxos::room::{Short, record_bytes};
use crate::types::{Ballot, NodeId, Record, Slot, Time, Value};

/// How long a freshly decided slot may wait for an `Accept` that carries the news to the followers.
const TELL_DELAY: Duration = Duration::from_millis(1);
/// How long a decided slot may stay unwritten: what a restart must then learn again from its peers.
const SAVE_DELAY: Duration = Duration::from_millis(100);

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Role {
    Follower,
    /// When each attempt asked, and for every server that granted one, when that one asked.
    PreCandidate {
        asked: BTreeMap<u64, Time>,
        grants: BTreeMap<NodeId, Time>,
    },
    Candidate {
        promises: BTreeMap<NodeId, Promise>,
        fetching: bool,
    },
    Leader(Leader),
}

/// Why a leader campaigns again although nothing is wrong with it.
pub const RENEWS: &str = "a server has forgotten votes of this ballot (S2)";

/// What an answer to a heartbeat says beside the position.
struct Echo {
    round: u64,
    room: Option<u64>,
    doubts: Doubts,
}

/// A server's Paxos state.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Replica {
    pub(super) me: NodeId,
    /// The servers of the cluster, this one included.
    pub(super) servers: Vec<NodeId>,
    pub(super) timeouts: Timeouts,
    pub(super) limits: Limits,
    pub(super) promised: Ballot,
    /// Accepted in the promised ballot, or decided, up to here (P2).
    pub(super) position: Slot,
    pub(super) decided: Slot,
    pub(super) log: Log,
    pub(super) role: Role,
    /// The server that was last heard leading in the promised ballot.
    pub(super) leader: Option<NodeId>,
    pub(super) leader_heard: Time,
    /// When this server acts if it hears nothing; unused while it leads.
    pub(super) deadline: Time,
    /// Up to here another server may be about to lead: one that was promised its ballot, or to which the lead was left.
    pub(super) yields_until: Option<Time>,
    /// When each peer was last heard, with anything.
    pub(super) heard: BTreeMap<NodeId, Time>,
    /// When this server began to ask the others for a leader, if it knows none. Silence from servers that nobody asked
    /// says nothing.
    pub(super) search_since: Option<Time>,
    /// Number of the last pre-vote.
    pub(super) attempt: u64,
    /// The highest ballot heard of; a campaign goes above it.
    pub(super) highest: Ballot,
    /// Last random number from the driver; jitter is drawn from it.
    pub(super) random: u64,
    /// The decided slot of the last record that says so.
    saved: Slot,
    save_due: Option<Time>,
    /// The disk is full.
    pub(super) short: Option<Short>,
    pub(super) membership: Membership,
    /// What damage took of its log, until it is made good (S2).
    pub(super) repair: Option<Repair>,
    /// The highest slot that others, whose disks were damaged, called decided.
    pub(super) rumoured: Slot,
    /// Of slots up to here it was known that they are decided, before this server's last campaign began (S2).
    pub(super) known_before: Slot,
    /// A decided slot whose value its disk did not give back when it was wanted, and when the others were asked for it (S2).
    pub(super) unreadable: Option<(Slot, Time)>,
}

impl Replica {
    /// A server that starts, or starts again with what its disk gave back: its promise, the decided slot, and the votes
    /// for the slots above it, in order and without a gap.
    pub fn new(
        me: NodeId,
        servers: Vec<NodeId>,
        timeouts: Timeouts,
        now: Time,
        random: u64,
        restored: (Ballot, Slot, Vec<(Ballot, Value)>),
    ) -> Replica {
        assert!(servers.contains(&me), "{me} is not a server of its own cluster");
        let (promised, decided, votes) = restored;
        let mut log = Log::new(decided);
        let mut position = decided;
        for (ballot, value) in votes {
            assert!(ballot <= promised, "P1: a vote implies its promise");
            let slot = log.last().next();
            // Durable acceptances in the promised ballot, without a gap from the decided slot, still count (P2).
            if ballot == promised && position.next() == slot {
                position = slot;
            }
            log.put(slot, ballot, value);
        }
        let mut replica = Replica {
            me,
            servers,
            timeouts,
            limits: Limits::default(),
            promised,
            position,
            decided,
            log,
            role: Role::Follower,
            leader: None,
            leader_heard: Time::default(),
            yields_until: None,
            deadline: now,
            heard: BTreeMap::new(),
            search_since: None,
            attempt: 0,
            highest: promised,
            random,
            saved: decided,
            save_due: None,
            short: None,
            membership: Membership::default(),
            repair: None,
            rumoured: Slot::ZERO,
            known_before: Slot::ZERO,
            unreadable: None,
        };
        replica.reset_deadline(now);
        replica
    }

    /// The same with other bounds than the usual ones.
    pub fn with_limits(self, limits: Limits) -> Replica {
        Replica { limits, ..self }
    }

    pub fn promised(&self) -> Ballot {
        self.promised
    }

    pub fn decided(&self) -> Slot {
        self.decided
    }

    /// Accepted in the promised ballot, or decided, up to here.
    pub fn position(&self) -> Slot {
        self.position
    }

    /// The vote for a slot, if it is in memory; decided if the slot is.
    pub fn entry(&self, slot: Slot) -> Option<&(Ballot, Value)> {
        self.log.get(slot)
    }

    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    pub fn standing(&self, now: Time) -> Standing {
        if self.is_leader() {
            return Standing::Leading;
        }
        let timeout = self.timeouts.election();
        if let Some(leader) = self.live_leader(now) {
            return Standing::Following(leader);
        }
        let peers = self.heard.values().filter(|heard| now.since(**heard) < timeout).count();
        match self.search_since {
            Some(since) if peers + 1 < self.majority() && now.since(since) >= timeout => Standing::NoQuorum,
            _ => Standing::Searching,
        }
    }

    /// When [`Replica::timer`] wants to be called next.
    pub fn next_deadline(&self) -> Time {
        let role = match &self.role {
            Role::Leader(leader) => {
                leader.tell_due.map_or(leader.heartbeat_due, |t| t.min(leader.heartbeat_due))
            }
            _ => self.deadline,
        };
        let salvage_due = self.repair.as_ref().and_then(|repair| repair.due);
        [self.save_due, self.space_due(), salvage_due].into_iter().flatten().fold(role, Time::min)
    }

    /// A message from another server of the cluster, or from this one to itself.
    pub fn message(&mut self, now: Time, from: NodeId, message: Message, out: &mut Output) {
        if !self.servers.contains(&from) {
            out.events.push(Event::Ignored { from, what: "a message from outside the cluster" });
            return;
        }
        if from != self.me {
            self.heard.insert(from, now);
        }
        if message.vouched_by().is_some_and(|incarnation| !self.membership.counts(from, incarnation)) {
            out.events.push(Event::Ignored { from, what: LOST_DISK_VOUCHED });
            return;
        }
        // The ballot check for everything that a leader or candidate writes stands here, once.
        if let Some(ballot) = message.written_in() {
            self.highest = self.highest.max(ballot);
            if ballot.leader() != Some(from) {
                out.events.push(Event::Ignored { from, what: "a ballot of another server" });
                return;
            }
            if ballot < self.promised {
                let refuse = Refuse { ballot, promised: self.promised };
                out.after.push((from, Message::Refuse(refuse)));
                return;
            }
            if ballot > self.promised {
                if !self.can_promise(out) {
                    out.events.push(Event::NoRoom { what: "a promise" });
                    return;
                }
                self.promise(now, ballot, out);
                self.yields_until = self.yields_until.max(Some(now + self.timeouts.election()));
            }
        }
        match message {
            Message::PreVote(m) => self.on_pre_vote(now, from, m, out),
            Message::PreVoteReply(m) => self.on_pre_vote_reply(now, from, m, out),
            Message::Prepare(m) => self.on_prepare(m, out),
            Message::Promise(m) => self.on_promise(now, from, m, out),
            Message::Refuse(m) => self.on_refuse(now, m, out),
            Message::Accept(m) => self.on_accept(now, from, m, out),
            Message::Accepted(m) => self.on_progress(now, from, m.ballot, m.position, None, out),
            Message::Heartbeat(m) => self.on_heartbeat(now, from, m, out),
            Message::HeartbeatReply(m) => {
                let echo = Echo { round: m.round, room: m.room, doubts: m.doubts };
                self.on_progress(now, from, m.ballot, m.position, Some(echo), out);
            }
            Message::Fetch(m) => self.on_fetch(from, m, out),
            Message::Entries(m) => self.on_entries(now, from, m, out),
            Message::Snapshot(_) | Message::GetPiece { .. } | Message::Piece { .. } => {
                out.events.push(Event::Ignored { from, what: "a snapshot where there is no state" });
            }
            Message::Resign { .. } => self.on_resign(now, from, out),
            Message::Digests(_) | Message::Learner(_) => {}
        }
    }

    /// The deadline passed. `random` feeds the jitter of whatever is armed next.
    pub fn timer(&mut self, now: Time, random: u64, out: &mut Output) {
        self.random = random;
        if self.repair.as_ref().and_then(|repair| repair.due).is_some_and(|due| due <= now) {
            self.mend(out);
        }
        if self.save_due.is_some_and(|due| due <= now) {
            // Without room it waits: a restart learns from its peers what is decided.
            if self.fits(&Value::noop(), out) {
                out.records.push(Record::Decided(self.decided));
                self.saved = self.decided;
            }
            self.save_due = None;
        }
        let me = self.me;
        let (majority, timeout, interval) =
            (self.majority(), self.timeouts.election(), self.timeouts.heartbeat());
        let (hands_over, own_doubts) = (self.hands_over(now), self.doubts());
        let Role::Leader(leader) = &mut self.role else {
            if self.deadline <= now && self.membership.votes() {
                self.begin_pre_vote(now, out);
            } else if self.deadline <= now {
                self.ask_peers(out);
                self.reset_deadline(now);
            }
            return;
        };
        if leader.heartbeat_due <= now {
            let renews = own_doubts == Doubts::None && leader.should_renew(me, majority, now, timeout);
            // The clock for this runs on its own: rounds for reads must not put check-quorum off.
            leader.heartbeat_due = now + interval;
            if hands_over {
                self.step_down(now, "its log has no room, and those of a majority have", out);
            } else if renews {
                self.step_down(now, RENEWS, out);
                self.begin_pre_vote(now, out);
            } else if leader.hears_majority(me, majority, now, timeout) {
                self.begin_round(out);
            } else {
                self.step_down(now, "a majority was not heard for an election time-out", out);
            }
        } else if leader.tell_due.is_some_and(|due| due <= now) {
            self.send_heartbeat(out);
        }
    }

    /// Everything of this turn has been stepped: entries go out, and what the leader appended is acknowledged by itself.
    pub fn turn_end(&mut self, now: Time, out: &mut Output) {
        if self.is_leader() {
            let told = self.peers().into_iter().fold(true, |told, peer| self.send_entries(peer, out) & told);
            let (me, ballot, position, decided) = (self.me, self.promised, self.position, self.decided);
            let incarnation = self.membership.mine();
            let leader = self.leading();
            let own = leader.progress.get_mut(&me).expect("a leader keeps its own progress");
            if own.sent < position {
                own.sent = position;
                // P1: the leader's own vote counts when it is durable, like everybody else's.
                out.after.push((me, Message::Accepted(Accepted { ballot, position, incarnation })));
            }
            if told {
                (leader.told, leader.tell_due) = (decided, None);
            } else if leader.told < decided && leader.tell_due.is_none() {
                leader.tell_due = Some(now + TELL_DELAY);
            }
        }
        if self.membership.promise_unsaved && self.can_promise(out) {
            self.membership.promise_unsaved = false;
            out.records.push(Record::Promise(self.promised));
        }
        // Headers of records say what was decided before their turn; only a record of its own says it for certain.
        if self.saved < self.decided && self.save_due.is_none() {
            self.save_due = Some(now + SAVE_DELAY);
        }
    }

    /// Whether a leader may propose another value now.
    pub fn can_propose(&self) -> bool {
        self.is_leader() && self.log.last().0 - self.decided.0 < self.limits.window_slots
    }

    /// Proposes a value for the next free slot; only while [`Replica::can_propose`].
    pub fn propose(&mut self, value: Value, out: &mut Output) -> Slot {
        assert!(self.can_propose(), "P2: only a leader with room in its window proposes");
        let slot = self.log.last().next();
        self.accept_own(slot, value, out);
        slot
    }

    /// Begins a heartbeat round and returns its number: once [`Replica::confirmed_round`] reaches it, this server was
    /// still leading when the round began (P5).
    pub fn begin_round(&mut self, out: &mut Output) -> u64 {
        let leader = self.leading();
        leader.round += 1;
        let round = leader.round;
        self.send_heartbeat(out);
        round
    }

    /// The highest heartbeat round echoed by a majority, 0 if this server does not lead.
    pub fn confirmed_round(&self) -> u64 {
        match &self.role {
            Role::Leader(leader) => leader.confirmed_round(self.me, self.majority()),
            _ => 0,
        }
    }

    /// Whether everything that phase 1 brought up is decided (P5).
    pub fn phase1_decided(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.phase1_end <= self.decided)
    }

    /// Forgets decided entries that are on disk and that no server is likely to need soon.
    pub fn trim(&mut self) {
        self.log.trim(self.decided, self.limits.tail_bytes);
    }

    /// This server now stands where a snapshot does. What it voted for above stays (P2), and so does its promise.
    pub fn install(&mut self, now: Time, slot: Slot, out: &mut Output) {
        assert!(slot > self.decided && !self.is_leader(), "P2: a snapshot never takes a server back");
        self.log.jump(slot);
        self.decided = slot;
        self.position = self.position.max(slot);
        self.saved = slot;
        self.mend(out);
        self.caught_up(now, out);
    }

    // ---- the acceptor ----

    /// Moves to a higher ballot: the promise, and with it the end of any role in a lower one.
    pub(super) fn promise(&mut self, now: Time, ballot: Ballot, out: &mut Output) {
        assert!(ballot > self.promised, "P1: a promise is never lowered");
        self.step_down(now, "another server was promised a higher ballot", out);
        self.promised = ballot;
        self.position = self.decided;
        self.leader = None;
        out.records.push(Record::Promise(ballot));
        out.events.push(Event::Promised { ballot });
        self.reset_deadline(now);
    }

    fn on_prepare(&mut self, m: Prepare, out: &mut Output) {
        if !self.membership.votes() {
            return;
        }
        let (loss, incarnation) = (self.loss(), self.membership.mine());
        let votes = match loss {
            None => self.log.slice(self.decided.next(), self.log.last(), usize::MAX),
            Some(_) => Vec::new(),
        };
        let promise = Promise { ballot: m.ballot, decided: self.decided, votes, loss, incarnation };
        let to = m.ballot.leader().expect("the ballot check named the candidate");
        out.after.push((to, Message::Promise(promise)));
    }

    fn on_accept(&mut self, now: Time, from: NodeId, m: Accept, out: &mut Output) {
        self.follow(now, from);
        if !self.membership.votes() {
            return;
        }
        // S2: of slots that it knows as decided and whose values it lost, it takes only what the leader knows as decided, too:
        // it may have heard of them from a later ballot than this one.
        let free = |slot| slot > self.known() || slot <= m.decided.max(self.decided);
        let mut values: Vec<(Slot, Value)> = (m.first.0..).map(Slot).zip(m.values).collect();
        if let Some(first) = values.iter().position(|(slot, _)| !free(*slot)) {
            let what = "a proposal for a slot that is decided, unknown to its leader, and lost here";
            out.events.push(Event::Ignored { from, what });
            values.truncate(first);
        }
        for (slot, value) in values {
            // P2: in this ballot n+1 is taken only after n. What is at or below the position is a repetition.
            if slot == self.position.next() {
                if !self.fits(&value, out) {
                    // As if it had been lost: the leader sends it again when there is room.
                    out.events.push(Event::NoRoom { what: "a proposal" });
                    break;
                }
                out.records.push(Record::Accept { slot, ballot: m.ballot, value: value.clone() });
                self.log.put(slot, m.ballot, value);
                self.position = slot;
            }
        }
        self.learn_decided(now, m.decided, out);
        let incarnation = self.membership.mine();
        let accepted = Accepted { ballot: m.ballot, position: self.position, incarnation };
        out.after.push((from, Message::Accepted(accepted)));
    }

    fn on_heartbeat(&mut self, now: Time, from: NodeId, m: Heartbeat, out: &mut Output) {
        self.follow(now, from);
        if !self.membership.votes() {
            return self.learn_from(from, m, out);
        }
        self.learn_decided(now, m.decided, out);
        self.forget_doubts(m.phase1_end, out);
        let incarnation = self.membership.mine();
        let room = self.short.is_some().then(|| self.room_to_accept(out));
        let Heartbeat { ballot, round, .. } = m;
        let (position, doubts) = (self.position, self.doubts());
        let reply = HeartbeatReply { ballot, round, position, room, doubts, incarnation };
        out.after.push((from, Message::HeartbeatReply(reply)));
    }

    fn follow(&mut self, now: Time, leader: NodeId) {
        assert!(leader != self.me, "P2: a leader accepts its own proposals directly");
        self.role = Role::Follower;
        self.leader = Some(leader);
        self.leader_heard = now;
        self.search_since = None;
        self.reset_deadline(now);
    }

    /// P2: "decided up to d" says nothing about slots that were not accepted in the same ballot.
    fn learn_decided(&mut self, now: Time, decided: Slot, out: &mut Output) {
        self.set_decided(now, decided.min(self.position), out);
    }

    // ---- the leader ----

    /// The leader's own acceptance of what it proposes.
    pub(super) fn accept_own(&mut self, slot: Slot, value: Value, out: &mut Output) {
        assert_eq!(slot, self.position.next(), "P2: a leader fills its slots in order");
        out.records.push(Record::Accept { slot, ballot: self.promised, value: value.clone() });
        self.log.put(slot, self.promised, value);
        self.position = slot;
    }

    /// An `Accepted`, or the answer to a heartbeat.
    fn on_progress(
        &mut self,
        now: Time,
        from: NodeId,
        ballot: Ballot,
        position: Slot,
        echo: Option<Echo>,
        out: &mut Output,
    ) {
        let (promised, majority) = (self.promised, self.majority());
        if !self.is_leader() || ballot != promised {
            return;
        }
        if position > self.log.last() {
            // Nobody accepts what this ballot never proposed. So it stands where a snapshot does, whose slots a later
            // ballot decided, of which neither of them has heard yet.
            return self.step_down(now, "another server stands beyond all that it proposed", out);
        }
        let leader = self.leading();
        let progress = leader.progress.get_mut(&from).expect("a leader tracks every server of its cluster");
        progress.heard = now;
        progress.gone = false;
        progress.acked = progress.acked.max(Some(position));
        // Only upwards: a follower that restarted may stand below what it once acknowledged.
        progress.sent = progress.sent.max(position);
        if let Some(Echo { round, room, doubts }) = echo {
            if round >= progress.echoed {
                progress.room = room;
                progress.doubts = Some(doubts);
            }
            progress.echoed = progress.echoed.max(round);
            // The echo left after everything sent before that round arrived, or was lost on the way.
            if round > progress.sent_in_round && position < progress.sent && !progress.reading {
                progress.sent = position;
                out.events.push(Event::Resending { to: from, from: position.next() });
            }
        }
        let decided = leader.majority_position(majority);
        self.set_decided(now, decided, out);
        if from != self.me {
            self.send_entries(from, out);
        }
    }

    fn send_heartbeat(&mut self, out: &mut Output) {
        let (ballot, decided, peers) = (self.promised, self.decided, self.peers());
        let leader = self.leading();
        leader.told = decided;
        leader.tell_due = None;
        let (round, phase1_end) = (leader.round, leader.phase1_end);
        let heartbeat = Heartbeat { ballot, round, decided, phase1_end };
        out.now.extend(peers.into_iter().map(|p| (p, Message::Heartbeat(heartbeat.clone()))));
    }

    /// Sends the next entries to a follower, as far as its window allows; true if there are any, which also tell what is decided.
    fn send_entries(&mut self, to: NodeId, out: &mut Output) -> bool {
        let (ballot, decided, floor, last) = (self.promised, self.decided, self.log.floor(), self.log.last());
        let mut sent = false;
        loop {
            let Role::Leader(leader) = &mut self.role else { return sent };
            let round = leader.round;
            let progress = leader.progress.get_mut(&to).expect("a leader tracks every server of its cluster");
            let Some(acked) = progress.acked else { return sent };
            let end = last.min(Slot(acked.0 + self.limits.window_slots));
            if progress.reading || progress.gone || progress.sent >= end {
                return sent;
            }
            let first = progress.sent.next();
            // Whoever has no room is told again when it has: until then every round would bring the same in vain.
            let room = progress.room.unwrap_or(u64::MAX);
            let bytes = self.log.get(first).map_or(RECORD_BYTES, |(_, value)| record_bytes(value));
            if bytes > room {
                return sent;
            }
            if first <= floor {
                progress.reading = true;
                out.reads.push(self.read_log(Purpose::CatchUp(to), first));
                return sent;
            }
            let values: Vec<Value> = self
                .log
                .slice(first, end, room.min(self.limits.catch_up_bytes as u64) as usize)
                .into_iter()
                .map(|(_, value)| value)
                .collect();
            progress.sent = Slot(progress.sent.0 + values.len() as u64);
            progress.sent_in_round = round;
            out.now.push((to, Message::Accept(Accept { ballot, decided, first, values })));
            sent = true;
        }
    }

    pub(super) fn leading(&mut self) -> &mut Leader {
        match &mut self.role {
            Role::Leader(leader) => leader,
            role => panic!("P2: {} acts as leader in the role {role:?}", self.me),
        }
    }

    // ---- common ----

    pub(super) fn majority(&self) -> usize {
        self.servers.len() / 2 + 1
    }

    pub(super) fn peers(&self) -> Vec<NodeId> {
        self.servers.iter().copied().filter(|s| *s != self.me).collect()
    }
}
