//! How a server becomes leader: pre-vote, phase 1 with state synchronisation, taking over, and giving up.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::limits::RECORD_BYTES;
use crate::paxos::leader::{Leader, Progress};
use crate::paxos::membership::LOST_DISK_PROMISED;
use crate::paxos::message::*;
use crate::paxos::output::{Event, Output};
use crate::paxos::repair::choose;
use crate::paxos::replica::{Replica, Role};
use crate::paxos::room::record_bytes;
use crate::types::{Ballot, NodeId, Record, Slot, Time, Value};

impl Replica {
    /// Campaigns now instead of at the next time-out, if no leader is known: for the server that clients ask first. Not
    /// while somebody else may be about to lead: two servers that hear their clients behind each other's prepare would
    /// take the lead from each other for ever.
    pub fn campaign_if_leaderless(&mut self, now: Time, out: &mut Output) {
        let yields = self.yields_until.is_some_and(|until| now < until);
        let free = matches!(self.role, Role::Follower) && self.membership.votes();
        if free && self.live_leader(now).is_none() && !yields {
            self.begin_pre_vote(now, out);
        }
    }

    /// This server was cut off and is back: leadership, if it had it, is long gone, and silence counts from now.
    pub fn resume(&mut self, now: Time, out: &mut Output) {
        self.step_down(now, "the server was cut off", out);
        self.leader = None;
        self.yields_until = None;
        self.search_since = None;
        self.reset_deadline(now);
    }

    /// The leader, if it was heard within an election time-out.
    pub(super) fn live_leader(&self, now: Time) -> Option<NodeId> {
        match self.role {
            Role::Leader(_) => Some(self.me),
            Role::Follower if now.since(self.leader_heard) < self.timeouts.election() => self.leader,
            _ => None,
        }
    }

    /// Until when what this server has heard shows that its cluster is led, an election time-out long: of a leader, that a
    /// majority confirms its ballot, in which all is decided that phase 1 brought up; of a follower, that its leader is
    /// there. `None` if nothing shows it.
    pub fn led_until(&self, now: Time) -> Option<Time> {
        let heard = match &self.role {
            Role::Leader(leader) if self.confirmed_round() > 0 && self.phase1_decided() => {
                leader.majority_heard(self.me, self.majority(), now)
            }
            Role::Follower if self.leader.is_some() => self.leader_heard,
            _ => return None,
        };
        Some(heard + self.timeouts.election())
    }

    pub(super) fn begin_pre_vote(&mut self, now: Time, out: &mut Output) {
        self.report_loss(out);
        self.attempt += 1;
        self.search_since.get_or_insert(now);
        // Where a round trip takes longer than the pause, every answer is one to an earlier question. But one that was
        // asked long ago says nothing: since then a leader may have been elected.
        let timeout = self.timeouts.election();
        if !matches!(self.role, Role::PreCandidate { .. }) {
            self.role = Role::PreCandidate { asked: BTreeMap::new(), grants: BTreeMap::new() };
        }
        if let Role::PreCandidate { asked, .. } = &mut self.role {
            asked.retain(|_, at| now.since(*at) <= timeout);
            asked.insert(self.attempt, now);
        }
        // Asking again costs nothing and changes nothing, so it happens sooner than a whole time-out.
        let pause = self.timeouts.heartbeat() * 2;
        self.deadline = now + pause + self.jitter(pause);
        out.events.push(Event::PreVoteBegun);
        let has_room = self.has_room();
        for peer in self.peers() {
            out.now.push((peer, Message::PreVote(PreVote { attempt: self.attempt, has_room })));
        }
        self.campaign_if_granted(now, out);
    }

    pub(super) fn on_pre_vote(&mut self, now: Time, from: NodeId, m: PreVote, out: &mut Output) {
        if !self.membership.votes() {
            return;
        }
        // A leader that was refused for a higher ballot asks its own followers, and they agree.
        let granted =
            self.live_leader(now).is_none_or(|leader| leader == from) && (m.has_room || !self.has_room());
        let reply = PreVoteReply { attempt: m.attempt, granted, promised: self.promised };
        out.now.push((from, Message::PreVoteReply(reply)));
    }

    pub(super) fn on_pre_vote_reply(&mut self, now: Time, from: NodeId, m: PreVoteReply, out: &mut Output) {
        self.highest = self.highest.max(m.promised);
        let Role::PreCandidate { asked, grants } = &mut self.role else { return };
        let Some(at) = asked.get(&m.attempt) else { return };
        if m.granted {
            grants.insert(from, *at);
            self.campaign_if_granted(now, out);
        } else {
            grants.remove(&from);
            out.events.push(Event::PreVoteRefused { by: from });
        }
    }

    fn campaign_if_granted(&mut self, now: Time, out: &mut Output) {
        let Role::PreCandidate { grants, .. } = &self.role else { return };
        let timeout = self.timeouts.election();
        let fresh = grants.values().filter(|at| now.since(**at) <= timeout).count();
        // Its own, and those of others.
        if 1 + fresh >= self.majority() {
            self.campaign(now, out);
        }
    }

    /// Begins phase 1.
    pub(super) fn campaign(&mut self, now: Time, out: &mut Output) {
        if !self.can_promise(out) {
            out.events.push(Event::NoRoom { what: "a promise to itself" });
            return;
        }
        let ballot = Ballot::new(self.highest.max(self.promised).round + 1, self.me);
        self.highest = ballot;
        self.promise(now, ballot, out);
        self.role = Role::Candidate { promises: BTreeMap::new(), fetching: false };
        self.known_before = self.rumoured.max(self.repair.as_ref().map_or(Slot::ZERO, |_| self.known()));
        out.events.push(Event::Campaigning { ballot });
        // P1: to itself as to the others, and to nobody before its own promise is durable.
        for server in self.servers.clone() {
            let prepare = Prepare { ballot, decided: self.decided };
            out.after.push((server, Message::Prepare(prepare)));
        }
    }

    pub(super) fn on_promise(&mut self, now: Time, from: NodeId, m: Promise, out: &mut Output) {
        let ballot = self.promised;
        let Role::Candidate { promises, fetching } = &mut self.role else { return };
        if m.ballot != ballot {
            return;
        }
        if m.loss.is_some() {
            self.rumoured = self.rumoured.max(m.known());
        }
        promises.insert(from, m);
        // S2: who came last may have what none of the others has.
        *fetching &= promises.values().all(|promise| promise.loss.is_none());
        self.lead_if_prepared(now, out);
    }

    /// Takes over once a majority has promised and this server has everything that they know as decided.
    fn lead_if_prepared(&mut self, now: Time, out: &mut Output) {
        let (me, majority, decided) = (self.me, self.majority(), self.decided);
        let Role::Candidate { promises, fetching } = &mut self.role else { return };
        if promises.len() < majority || !promises.contains_key(&me) {
            return;
        }
        let (ahead, known) = promises
            .iter()
            .map(|(server, promise)| (*server, promise.decided))
            .max_by_key(|(_, decided)| *decided)
            .expect("a majority is at least one");
        if known > decided {
            if !*fetching {
                *fetching = true;
                out.now.push((ahead, Message::Fetch(Fetch { from: decided.next() })));
            }
            return;
        }
        // S3: a disk may have been replaced since it promised. Whoever decides that says so among the votes.
        let newest = self.membership.newest(decided, promises.values());
        promises.retain(|server, promise| {
            let counts = newest.counts(*server, promise.incarnation);
            if !counts {
                out.events.push(Event::Ignored { from: *server, what: LOST_DISK_PROMISED });
            }
            counts
        });
        if promises.len() < majority || !promises.contains_key(&me) {
            return;
        }
        let (votes, doubtful) = choose(promises, decided, majority);
        if let Some(doubtful) = doubtful {
            if !self.learn_chosen(now, &votes, doubtful, out) {
                self.ask_all(out);
            }
            return;
        }
        let promises = std::mem::take(promises);
        self.lead(now, &promises, votes, out);
    }

    pub(super) fn on_entries(&mut self, now: Time, from: NodeId, m: Entries, out: &mut Output) {
        self.restore_entry(&m, out);
        if !matches!(self.role, Role::Candidate { .. }) && self.membership.votes() {
            return;
        }
        let before = self.decided;
        let mut slot = m.first;
        for (ballot, value) in m.entries {
            if slot == self.decided.next() {
                if !self.fits(&value, out) {
                    out.events.push(Event::NoRoom { what: "what others know as decided" });
                    break;
                }
                // The value is decided, so every vote of a higher ballot for this slot, here or elsewhere, equals it.
                let ballot = ballot.min(self.promised);
                out.records.push(Record::Learn { slot, ballot, value: value.clone() });
                self.log.put(slot, ballot, value);
                self.set_decided(now, slot, out);
                self.position = self.position.max(slot);
            }
            slot = slot.next();
        }
        // Only an answer that brings something is followed by another question: were repetitions, too, then a network
        // that repeats messages would double the questions again and again.
        if self.decided == before {
            out.events.push(Event::Ignored { from, what: "entries that add nothing" });
            return;
        }
        out.events.push(Event::CaughtUp { from, decided: self.decided });
        if !self.membership.votes() && self.decided < self.membership.known {
            out.now.push((from, Message::Fetch(Fetch { from: self.decided.next() })));
        }
        self.caught_up(now, out);
    }

    /// More is decided here than before: a candidate may need no more.
    pub(super) fn caught_up(&mut self, now: Time, out: &mut Output) {
        if let Role::Candidate { fetching, .. } = &mut self.role {
            *fetching = false;
        }
        self.catching_up(now);
        self.lead_if_prepared(now, out);
    }

    /// A campaign's clock stands still while a transfer makes progress.
    pub fn catching_up(&mut self, now: Time) {
        if matches!(self.role, Role::Candidate { .. }) {
            self.reset_deadline(now);
        }
    }

    fn lead(
        &mut self,
        now: Time,
        promises: &BTreeMap<NodeId, Promise>,
        mut votes: BTreeMap<Slot, (Ballot, Value)>,
        out: &mut Output,
    ) {
        let ballot = self.promised;
        let phase1_end = votes.keys().next_back().copied().unwrap_or(self.decided);
        let open = (self.decided.0 + 1..=phase1_end.0).map(Slot);
        let cost: u64 =
            open.map(|slot| votes.get(&slot).map_or(RECORD_BYTES, |(_, value)| record_bytes(value))).sum();
        if cost > self.room_to_accept(out) {
            out.events.push(Event::NoRoom { what: "what phase 1 left to be proposed again" });
            return self.step_down(now, "its log has no room", out);
        }
        let mut progress: BTreeMap<_, _> =
            self.servers.iter().map(|s| (*s, Progress::new(now, None))).collect();
        for (server, promise) in promises {
            progress.insert(*server, Progress::new(now, Some(promise.decided)));
        }
        // Its own acknowledgement comes through the message to itself, when it is durable.
        progress.insert(self.me, Progress::new(now, None));
        self.position = self.decided;
        while self.position < phase1_end {
            let slot = self.position.next();
            let value = votes.remove(&slot).map_or_else(Value::noop, |(_, value)| value);
            self.accept_own(slot, value, out);
        }
        assert_eq!(self.log.last(), phase1_end, "P2: its own votes are among the promises");
        self.role = Role::Leader(Leader {
            phase1_end,
            progress,
            round: 0,
            heartbeat_due: now + self.timeouts.heartbeat(),
            told: self.decided,
            tell_due: None,
        });
        self.leader = Some(self.me);
        self.search_since = None;
        out.events.push(Event::Leading { ballot, decided: self.decided, phase1_end });
        self.forget_doubts(phase1_end, out);
        self.begin_round(out);
    }

    pub(super) fn on_refuse(&mut self, now: Time, m: Refuse, out: &mut Output) {
        self.highest = self.highest.max(m.promised);
        if m.ballot != self.promised || m.promised <= m.ballot {
            return;
        }
        match self.role {
            // Somebody promised a ballot that never came to lead. Go above it, if the others agree.
            Role::Leader(_) => {
                self.step_down(now, "a server has promised a higher ballot", out);
                self.begin_pre_vote(now, out);
            }
            Role::Candidate { .. } => {
                self.role = Role::Follower;
                self.leader = None;
                self.reset_deadline(now);
            }
            _ => {}
        }
    }

    /// Ends any role but that of a follower.
    pub(super) fn step_down(&mut self, now: Time, why: &'static str, out: &mut Output) {
        if self.is_leader() {
            out.events.push(Event::LostLeadership { ballot: self.promised, why });
            self.salvage_again(now);
        }
        if !matches!(self.role, Role::Follower) {
            self.role = Role::Follower;
            self.leader = None;
            self.reset_deadline(now);
        }
    }

    pub(super) fn reset_deadline(&mut self, now: Time) {
        let timeout = self.timeouts.election();
        self.deadline = now + timeout + self.jitter(timeout);
    }

    /// A pseudo-random share of `most`, stretched from the driver's last random number.
    pub(super) fn jitter(&mut self, most: Duration) -> Duration {
        if most.is_zero() {
            // Nothing to draw from: where time stands still, the same history leads to the same state.
            return most;
        }
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        most.mul_f64((self.random >> 40) as f64 / (1u64 << 24) as f64)
    }
}
