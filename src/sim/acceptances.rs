//! P2 from outside: who was seen to have promised and accepted what. A slot may count as decided, and a server may lead,
//! only if a majority was seen to allow it; a vote that was seen does not vanish; in one ballot a slot has one value; and
//! once a majority has voted for a value, decided or not, every vote of a higher ballot is for the same one.

use std::collections::BTreeMap;

use crate::config::Topology;
use crate::paxos::Message;
use crate::shard::Shard;
use crate::types::{Ballot, NodeId, ShardId, Slot, Value};

/// What one server was seen to hold, at the end of turns whose records are durable.
#[derive(Default, Debug)]
struct Holds {
    promised: Ballot,
    /// By ballot: the highest position, that is accepted in it or decided.
    positions: BTreeMap<Ballot, Slot>,
    /// The votes above its decided slot, as last seen.
    votes: BTreeMap<Slot, (Ballot, Value)>,
    /// The ballot in which it led when it was last seen, and its decided slot.
    led: Option<(Ballot, Slot)>,
}

impl Holds {
    fn has_accepted(&self, ballot: Ballot, slot: Slot) -> bool {
        self.positions.get(&ballot).is_some_and(|position| *position >= slot)
    }
}

/// What a message says about acceptances: up to which position, in which ballot.
pub fn acknowledgement(message: &Message) -> Option<(Ballot, Slot)> {
    match message {
        Message::Accepted(m) => Some((m.ballot, m.position)),
        Message::HeartbeatReply(m) => Some((m.ballot, m.position)),
        _ => None,
    }
}

pub struct Acceptances {
    topology: Topology,
    servers: BTreeMap<NodeId, Holds>,
    /// What a majority was seen to have voted for, and the lowest ballot in which it was.
    chosen: BTreeMap<(ShardId, Slot), (Ballot, Value)>,
}

impl Acceptances {
    pub fn new(topology: Topology) -> Acceptances {
        Acceptances { topology, servers: BTreeMap::new(), chosen: BTreeMap::new() }
    }

    /// A server's votes for slots above this one are gone. What it had promised and accepted may still be on its way to others.
    pub fn forget(&mut self, server: NodeId, above: Slot) {
        if let Some(holds) = self.servers.get_mut(&server) {
            holds.votes.split_off(&above.next());
            holds.led = None;
        }
    }

    /// A server ended a turn, everything it wrote being durable, or was just restored.
    pub fn observe(&mut self, server: &Shard) {
        let (me, replica) = (server.id(), server.replica());
        let (promised, position, decided) = (replica.promised(), replica.position(), replica.decided());
        let holds = self.servers.entry(me).or_default();
        let mut fresh = Vec::new();
        let before = std::mem::take(&mut holds.votes);
        // S2: what damage took is told apart where the server starts.
        for (slot, (ballot, value)) in
            before.range(decided.next()..).filter(|(slot, _)| replica.vouches(**slot))
        {
            let now = replica.entry(*slot);
            assert!(
                now.is_some_and(|now| now.0 > *ballot || *now == (*ballot, value.clone())),
                "P2: {me} held a vote for slot {slot} in {ballot}, and now {:?}",
                now.map(|(ballot, _)| ballot)
            );
        }
        let mut slot = decided.next();
        while let Some((ballot, value)) = replica.entry(slot) {
            if before.get(&slot).is_none_or(|(known, _)| known != ballot) {
                fresh.push(slot);
            }
            holds.votes.insert(slot, (*ballot, value.clone()));
            slot = slot.next();
        }
        holds.promised = promised.max(holds.promised);
        let known = holds.positions.entry(promised).or_default();
        *known = position.max(*known);
        let led = std::mem::replace(&mut holds.led, replica.is_leader().then_some((promised, decided)));
        let (shard, majority) = (self.topology.shard_of_server(me), self.topology.majority());
        fresh.into_iter().for_each(|slot| self.check_vote(me, shard, slot));
        if !replica.is_leader() {
            return;
        }
        match led.filter(|(ballot, _)| *ballot == promised) {
            None => {
                let backing = self.count(shard, |h| h.promised >= promised);
                assert!(
                    backing >= majority,
                    "P2: {me} leads in {promised}, which only {backing} servers have promised"
                );
            }
            // What a leader decides, it decides in its own ballot.
            Some((_, before)) if before < decided => {
                let backing = self.count(shard, |h| h.has_accepted(promised, decided));
                assert!(
                    backing >= majority,
                    "P2: {me} decides slot {decided} in {promised}, in which only {backing} servers have accepted it"
                );
            }
            Some(_) => {}
        }
    }

    /// A server was seen to have voted anew for a slot.
    fn check_vote(&mut self, me: NodeId, shard: ShardId, slot: Slot) {
        let (ballot, value) = &self.servers[&me].votes[&slot];
        let all = self.topology.servers_of(shard).filter_map(|s| self.servers.get(&s)?.votes.get(&slot));
        let same: Vec<&Value> = all.filter(|(other, _)| other == ballot).map(|(_, value)| value).collect();
        assert!(
            same.iter().all(|other| *other == value),
            "P2: {me} votes for another value of slot {slot} in {ballot} than others"
        );
        let chosen = self.chosen.get(&(shard, slot));
        assert!(
            chosen.is_none_or(|(lower, chosen)| ballot < lower || value == chosen),
            "P2: {me} votes in {ballot} for another value of slot {slot} than a majority did in {:?}",
            chosen.map(|(ballot, _)| ballot)
        );
        if same.len() >= self.topology.majority() && chosen.is_none_or(|(lower, _)| ballot < lower) {
            let chosen = (*ballot, value.clone());
            self.chosen.insert((shard, slot), chosen);
        }
    }

    /// An acknowledgement left a server, so that what it says is durable; or P1 is broken, which others check.
    pub fn acknowledged(&mut self, server: NodeId, message: &Message) {
        let Some((ballot, position)) = acknowledgement(message) else { return };
        let known = self.servers.entry(server).or_default().positions.entry(ballot).or_default();
        *known = position.max(*known);
    }

    fn count(&self, shard: ShardId, holds: impl Fn(&Holds) -> bool) -> usize {
        self.topology.servers_of(shard).filter(|s| self.servers.get(s).is_some_and(&holds)).count()
    }

    /// What a majority was seen to have voted for.
    pub fn chosen(&self, shard: ShardId, slot: Slot) -> Option<Value> {
        self.chosen.get(&(shard, slot)).map(|(_, value)| value.clone())
    }

    /// Somebody takes a slot for decided, as the first of all.
    pub fn check_decided(&self, who: NodeId, slot: Slot, value: &Value) {
        let shard = self.topology.shard_of_server(who);
        let chosen = self.chosen.get(&(shard, slot));
        assert!(
            chosen.is_none_or(|(_, chosen)| chosen == value),
            "P2: {who} takes another value of slot {slot} for decided than a majority voted for in {:?}",
            chosen.map(|(ballot, _)| ballot)
        );
        let members = self.topology.servers_of(shard).filter_map(|s| self.servers.get(&s));
        let ballots = members.flat_map(|h| h.positions.keys().copied());
        let most =
            ballots.map(|ballot| self.count(shard, |h| h.has_accepted(ballot, slot))).max().unwrap_or(0);
        assert!(
            most >= self.topology.majority(),
            "P2: {who} takes slot {slot} for decided, which at most {most} servers have accepted in one ballot"
        );
    }
}
