//! What the model is in: bounds, budgets, messages in flight, and everybody's state.

use shardpaxosbank::bank::command::{self, Range};
use shardpaxosbank::config::{Timeouts, Topology};
use shardpaxosbank::paxos::Message;
use shardpaxosbank::txn::message::{Request, Response};
use shardpaxosbank::txn::{Coordinator, Outcome};
use shardpaxosbank::types::{AccountId, ClientId, NodeId, Session, ShardId, Slot, Time, Transfer, Value};

use super::disk::Fault;
use super::node::{Node, Shared};
use super::rules::{Rule, Seen, Truth};

/// How often each thing may still happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Budget {
    /// Campaigns of servers: pre-vote and phase 1.
    pub campaigns: u8,
    /// Values given to leaders of a single cluster.
    pub proposals: u8,
    /// Times that a leader is asked whether it leads.
    pub probes: u8,
    /// Servers that lose their memory, between turns or within one.
    pub crashes: u8,
    /// Messages that arrive twice.
    pub duplicates: u8,
    /// Times that a server's clock moves on, so that it recovers what it has in doubt.
    pub pauses: u8,
    /// Times that the client's clock moves on while it misses a server, so that it takes the shard for lost.
    pub waits: u8,
    /// Times that the client loses its connection to a server, for a while.
    pub cuts: u8,
    /// Whether the client's coordinator may die.
    pub deaths: u8,
}

/// One configuration to be explored.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub name: &'static str,
    pub topology: Topology,
    pub timeouts: Timeouts,
    /// The servers that may campaign first, second, …
    pub campaigners: Vec<Vec<NodeId>>,
    /// The servers that may lose their memory, between turns or within one.
    pub crashing: Vec<NodeId>,
    /// How a turn of theirs may end early.
    pub faults: &'static [Fault],
    /// Messages to a server that never arrive: what a configuration is not about.
    pub lost: fn(NodeId, &Message) -> bool,
    /// The amounts of the transfer across shards, one initial state for each; none without a client.
    pub amounts: Vec<i64>,
    pub budget: Budget,
    /// What must happen somewhere.
    pub must: Vec<Seen>,
}

/// The client's connection to any server.
pub const CLIENT: ClientId = ClientId(1);
/// The model itself, which proposes and asks directly.
pub const MODEL: ClientId = ClientId(2);
/// The number of the model's question whether a server leads; its proposals are numbered from 1.
pub const PROBE: u64 = 100;

/// The connections of the recoverer of a server, in one of its lives.
pub fn recoverer(node: &Node) -> ClientId {
    ClientId(1000 + 100 * u64::from(node.shard.id().0) + u64::from(node.life))
}

/// A message in flight.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Packet {
    Peer { from: NodeId, to: NodeId, message: Message },
    Request { from: ClientId, to: NodeId, request: Request },
    Response { from: NodeId, to: ClientId, response: Response },
}

impl Packet {
    /// The server whose turn it takes, where that may end early.
    pub fn server(&self) -> Option<NodeId> {
        match self {
            Packet::Peer { to, .. } | Packet::Request { to, .. } => Some(*to),
            Packet::Response { .. } => None,
        }
    }
}

/// The client that transfers across shards.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Client {
    pub coordinator: Coordinator,
    pub clock: Time,
}

/// A state of the model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    pub nodes: Vec<Shared<Node>>,
    /// In the order of their fingerprints, none twice. Any of them may arrive next, or never.
    pub net: Vec<Shared<Packet>>,
    pub client: Option<Shared<Client>>,
    pub left: Budget,
    /// By shard: what its log has decided, remembered whoever forgets it.
    pub truth: Vec<Shared<Truth>>,
    /// What the client was told of its transfer.
    pub told: Option<Outcome>,
    /// Values that were refused, by number: they were never proposed.
    pub refused: Vec<u64>,
    /// The servers that the client has no connection to.
    pub cut: Vec<NodeId>,
    /// How far the log was decided when a leader was asked whether it leads.
    pub asked: Option<Slot>,
    /// What the client transfers; 0 without one.
    pub amount: i64,
    /// The rules that broke on the way here, with what happened.
    pub broken: Vec<(Rule, String)>,
}

/// What may happen next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// The n-th message in flight arrives; `again` says that a copy stays behind.
    Deliver {
        packet: usize,
        again: bool,
        fault: Option<Fault>,
    },
    /// A server that hears no leader asks `granter` for a pre-vote, gets it, and begins phase 1.
    Campaign {
        server: NodeId,
        granter: NodeId,
        fault: Option<Fault>,
    },
    Propose {
        server: NodeId,
        fault: Option<Fault>,
    },
    Probe {
        server: NodeId,
    },
    Pause {
        server: NodeId,
        fault: Option<Fault>,
    },
    Crash {
        server: NodeId,
    },
    /// The client's connection breaks: what it sent may arrive, answers do not.
    Cut {
        server: NodeId,
    },
    /// The connection stands again.
    Join {
        server: NodeId,
    },
    Wait,
    Die,
}

impl State {
    pub fn send(&mut self, packet: Packet) {
        let packet = Shared::new(packet);
        if let Err(place) = self.net.binary_search_by_key(&packet.fingerprint, |p| p.fingerprint) {
            self.net.insert(place, packet);
        }
    }

    pub fn has_broken(&self, rule: Rule) -> bool {
        self.broken.iter().any(|(broken, _)| *broken == rule)
    }

    pub fn breaks(&mut self, rule: Rule, what: impl Into<String>) {
        self.broken.push((rule, what.into()));
    }
}

/// Numbers that a value may have.
const MOST_PROPOSALS: u64 = 3;

/// A value like no other: a session, and a transfer of which the next one feels that it came first.
pub fn value(number: u64) -> Value {
    let mut blocks = Vec::new();
    command::put_open(&mut blocks);
    let range = Range { session: Session::new(ShardId(1), 1), first: number, count: 1 };
    let transfer = Transfer { from: AccountId(1), to: AccountId(2), amount: 5 + number as i64 };
    command::put_transfers(&mut blocks, range, &[transfer]);
    Value::from_slice(&blocks)
}

/// The number of a value that was proposed directly.
pub fn number_of(decided: &Value) -> Option<u64> {
    (1..=MOST_PROPOSALS).find(|number| value(*number) == *decided)
}
