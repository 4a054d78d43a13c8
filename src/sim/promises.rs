//! P1 from outside: what a server has told others that it keeps, held against what it knows after a restart.

use std::collections::BTreeMap;

use crate::paxos::Message;
use crate::shard::Shard;
use crate::sim::acceptances::acknowledgement;
use crate::types::{Ballot, NodeId, Slot, Vote};

#[derive(Clone, Default, Debug)]
pub struct Told {
    /// The highest ballot that it spoke in; every such message implies the promise.
    promised: Ballot,
    /// What kind of message that was.
    words: &'static str,
    /// By ballot: the highest position that it acknowledged.
    accepted: BTreeMap<Ballot, Slot>,
    /// Up to here it knew slots to be decided; for these, any vote that it still holds is the decided value.
    decided: Slot,
}

impl Told {
    /// A message left for another server, while slots up to `decided` were known to be decided.
    pub fn note(&mut self, me: NodeId, decided: Slot, message: &Message) {
        let (ballot, words) = match message {
            Message::Promise(m) => (m.ballot, "a promise"),
            Message::Accepted(m) => (m.ballot, "an acceptance"),
            Message::HeartbeatReply(m) => (m.ballot, "the answer to a heartbeat"),
            Message::Prepare(m) => (m.ballot, "a prepare"),
            Message::Accept(m) if m.ballot.leader() == Some(me) => (m.ballot, "a proposal"),
            Message::Heartbeat(m) => (m.ballot, "a heartbeat"),
            _ => return,
        };
        if ballot > self.promised {
            self.promised = ballot;
            self.words = words;
        }
        if let Some((_, position)) = acknowledgement(message) {
            self.decided = decided.max(self.decided);
            let known = self.accepted.entry(ballot).or_default();
            *known = position.max(*known);
        }
    }

    /// S2: damage was found in front of a record that ended doubts about slots above this one. What it hides of these was void
    /// when that was written, as far as it was of an older ballot than the promise.
    pub fn forgive(&mut self, promised: Ballot, above: Slot) {
        for (ballot, position) in &mut self.accepted {
            if *ballot < promised {
                *position = above.min(*position);
            }
        }
    }

    /// A server was restored from its disk: it must know everything that it told.
    pub fn check(&self, server: &Shard) {
        let (me, replica) = (server.id(), server.replica());
        assert!(
            replica.promised() >= self.promised,
            "P1: {me} sent {} of ballot {} and restarts with the promise {}",
            self.words,
            self.promised,
            replica.promised()
        );
        let loss = replica.loss();
        for (ballot, position) in &self.accepted {
            let mut slot = replica.decided().next();
            while slot <= *position {
                let vote = match &loss {
                    None => replica.entry(slot).map(|(ballot, _)| *ballot),
                    // S2: what it forgot, it must know to have forgotten.
                    Some(loss) => match loss.votes.get(&slot) {
                        Some(Vote::Cast(ballot, _) | Vote::Lost(Some(ballot))) => Some(*ballot),
                        Some(Vote::Lost(None)) => Some(replica.promised()),
                        None => (slot <= loss.hidden.max(loss.known)).then(|| replica.promised()),
                    },
                };
                assert!(
                    vote.is_some_and(|vote| vote >= *ballot || slot <= self.decided),
                    "P1: {me} acknowledged slot {slot} in ballot {ballot} and restarts with the vote {vote:?}"
                );
                slot = slot.next();
            }
        }
    }
}
