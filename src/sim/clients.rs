//! The coordinators of the world: what they are asked, what they send, and what they were told.

use std::collections::BTreeMap;

use crate::sim::network::{Packet, Place};
use crate::sim::text;
use crate::sim::world::{Options, SPIN_LIMIT, World};
use crate::txn::message::Request;
use crate::txn::{self, Coordinator, Op, Outcome};
use crate::types::{NodeId, Slot};

/// What a client asked for and has heard so far.
#[derive(Debug)]
pub struct Asked {
    pub op: Op,
    /// What was decided in the account's shard when a read began.
    since: Slot,
    pub outcomes: Vec<Outcome>,
}

impl Asked {
    pub fn is_answered(&self) -> bool {
        self.outcomes.last().is_some_and(|o| *o != Outcome::Unknown)
    }
}

pub struct Client {
    coordinator: Coordinator,
    pub(super) inbox: Vec<txn::Input>,
    /// Stands still; what arrives waits.
    pub paused: bool,
    pub asked: BTreeMap<u64, Asked>,
    spinning: u32,
}

impl World {
    /// A new coordinator; it has no session yet.
    pub fn add_client(&mut self) -> u32 {
        let id = self.next_client;
        self.next_client += 1;
        let Options { topology, timeouts, .. } = self.options;
        let coordinator = Coordinator::new(topology, timeouts, self.now);
        let client =
            Client { coordinator, inbox: Vec::new(), paused: false, asked: BTreeMap::new(), spinning: 0 };
        self.clients.insert(id, client);
        self.wake(Place::Client(id), self.now);
        id
    }

    /// The coordinator is gone for good.
    pub fn kill_client(&mut self, id: u32) {
        self.note(|| format!("K{id} dies"));
        self.clients.remove(&id);
        self.wakes.remove(&Place::Client(id));
        self.drop_connections(Place::Client(id));
    }

    pub fn pause_client(&mut self, id: u32, paused: bool) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.paused = paused;
            self.note(|| format!("K{id} {}", if paused { "stands still" } else { "goes on" }));
            self.wake(Place::Client(id), self.now);
        }
    }

    pub fn submit(&mut self, id: u32, op: Op) -> u64 {
        let since = match op {
            Op::Read(account) => self.options.topology.shard_of(account).map(|s| self.checker.decided(s)),
            _ => None,
        };
        let tag = self.next_tag;
        self.next_tag += 1;
        let client = self.clients.get_mut(&id).expect("only living clients are asked");
        client.asked.insert(tag, Asked { op, since: since.unwrap_or_default(), outcomes: Vec::new() });
        client.inbox.push(txn::Input::Submit { tag, op });
        self.wake(Place::Client(id), self.now);
        tag
    }

    pub fn hint(&mut self, id: u32, server: NodeId) {
        self.tell(Place::Client(id), txn::Input::Hint(server));
    }

    pub(super) fn client_turn(&mut self, id: u32) {
        let now = self.now;
        let Some(client) = self.clients.get_mut(&id).filter(|c| !c.paused) else { return };
        let mut out = txn::Output::default();
        client.spinning = if client.inbox.is_empty() { client.spinning + 1 } else { 0 };
        for input in std::mem::take(&mut client.inbox) {
            client.coordinator.step(now, input, &mut out);
        }
        client.coordinator.step(now, txn::Input::TurnEnd, &mut out);
        let deadline = client.coordinator.next_deadline();
        if deadline.is_none_or(|at| at > now) {
            client.spinning = 0;
        }
        assert!(
            client.spinning < SPIN_LIMIT,
            "K{id} spins: its deadline {deadline:?} never moves at {now:?}"
        );
        let me = Place::Client(id);
        for event in out.events {
            self.note(|| format!("K{id} {event:?}"));
        }
        for (to, request) in out.send {
            self.note(|| format!("K{id} → {to}  {}", text::request(&request)));
            if let Request::Submit { blocks, .. } = &request {
                self.checker.sent(id, blocks);
            }
            if let Some(connection) = self.open_connection(me, to) {
                self.remember_probe(connection, &request);
                self.send(now, me, Place::Server(to), Packet::Request(connection, request));
            }
        }
        out.connect.into_iter().for_each(|to| self.connect(me, to));
        for txn::Answer { tag, outcome, .. } in out.answers {
            self.answered(id, tag, outcome);
        }
        if let Some(at) = deadline {
            self.wake(me, at);
        }
    }

    fn answered(&mut self, id: u32, tag: u64, outcome: Outcome) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        let asked = client.asked.get_mut(&tag).expect("T3: answers name what was asked");
        assert!(
            !asked.is_answered(),
            "T3: {:?} was answered twice: {:?}, {outcome:?}",
            asked.op,
            asked.outcomes
        );
        asked.outcomes.push(outcome.clone());
        let (op, since) = (asked.op, asked.since);
        self.note(|| match op {
            Op::Transfer(t) => format!("K{id} {t} {}", outcome_text(&outcome)),
            Op::Read(a) => format!("K{id} ({a}) {}", outcome_text(&outcome)),
            _ => format!("K{id} {}", outcome_text(&outcome)),
        });
        match (op, outcome) {
            (Op::Transfer(transfer), outcome) => self.checker.told(id, transfer, &outcome),
            (Op::Read(account), Outcome::Balance(balance)) => self.checker.read(account, balance, since),
            _ => {}
        }
    }
}

fn outcome_text(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Committed => "committed".into(),
        Outcome::Aborted(reason) => format!("aborted: {reason}"),
        Outcome::Unknown => "unknown".into(),
        Outcome::Balance(balance) => format!("balance {balance}"),
        Outcome::Confirmed(_) => "leaders confirmed".into(),
        Outcome::Settled => "settled".into(),
    }
}
