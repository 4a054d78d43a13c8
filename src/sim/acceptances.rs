//! P2 from outside: who was seen to have promised and accepted what. A slot may count as decided, and a server may lead,
//! only if a majority was seen to allow it; and a vote that was seen does not vanish.

use std::collections::BTreeMap;

use crate::config::Topology;
use crate::paxos::Message;
use crate::shard::Shard;
use crate::types::{Ballot, NodeId, ShardId, Slot};

/// What one server was seen to hold, at the end of turns whose records are durable.
#[derive(Default, Debug)]
struct Holds {
    promised: Ballot,
    /// By ballot: the highest position, that is accepted in it or decided.
    positions: BTreeMap<Ballot, Slot>,
    /// The votes above its decided slot, as last seen.
    votes: BTreeMap<Slot, Ballot>,
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
}

impl Acceptances {
    pub fn new(topology: Topology) -> Acceptances {
        Acceptances { topology, servers: BTreeMap::new() }
    }

    /// A server ended a turn, everything it wrote being durable, or was just restored.
    pub fn observe(&mut self, server: &Shard) {
        let (me, replica) = (server.id(), server.replica());
        let (promised, position, decided) = (replica.promised(), replica.position(), replica.decided());
        let holds = self.servers.entry(me).or_default();
        for (slot, ballot) in holds.votes.range(decided.next()..) {
            let now = replica.entry(*slot).map(|(ballot, _)| *ballot);
            assert!(
                now.is_some_and(|now| now >= *ballot),
                "P2: {me} held a vote for slot {slot} in {ballot}, and now {now:?}"
            );
        }
        holds.votes.clear();
        let mut slot = decided.next();
        while let Some((ballot, _)) = replica.entry(slot) {
            holds.votes.insert(slot, *ballot);
            slot = slot.next();
        }
        holds.promised = promised.max(holds.promised);
        let known = holds.positions.entry(promised).or_default();
        *known = position.max(*known);
        let led = std::mem::replace(&mut holds.led, replica.is_leader().then_some((promised, decided)));
        if !replica.is_leader() {
            return;
        }
        let (shard, majority) = (self.topology.shard_of_server(me), self.topology.majority());
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

    /// An acknowledgement left a server, so that what it says is durable; or P1 is broken, which others check.
    pub fn acknowledged(&mut self, server: NodeId, message: &Message) {
        let Some((ballot, position)) = acknowledgement(message) else { return };
        let known = self.servers.entry(server).or_default().positions.entry(ballot).or_default();
        *known = position.max(*known);
    }

    fn count(&self, shard: ShardId, holds: impl Fn(&Holds) -> bool) -> usize {
        self.topology.servers_of(shard).filter(|s| self.servers.get(s).is_some_and(&holds)).count()
    }

    /// Somebody takes a slot for decided, as the first of all.
    pub fn check_decided(&self, who: NodeId, slot: Slot) {
        let shard = self.topology.shard_of_server(who);
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
