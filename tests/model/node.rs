//! One server of the model, and one turn of it: `drive::turn` and `drive::restore`, as in every other driver.

use std::fmt::{self, Debug};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use shardpaxosbank::config::{Limits, Timeouts, Topology};
use shardpaxosbank::drive::{self, Ports};
use shardpaxosbank::paxos::{self, Message};
use shardpaxosbank::shard::{self, Input, Shard};
use shardpaxosbank::storage::CommitStats;
use shardpaxosbank::txn;
use shardpaxosbank::txn::message::{Request, Response};
use shardpaxosbank::types::{ClientId, NodeId, Slot, Time, Value};

use super::disk::{Fault, ModelLog};

/// The same in every run.
pub fn fingerprint(item: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    item.hash(&mut hasher);
    hasher.finish()
}

/// A part of a state that many states share: copied by reference, compared and hashed by its fingerprint.
pub struct Shared<T> {
    pub fingerprint: u64,
    item: Arc<T>,
}

impl<T: Hash> Shared<T> {
    pub fn new(item: T) -> Shared<T> {
        Shared { fingerprint: fingerprint(&item), item: Arc::new(item) }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared { fingerprint: self.fingerprint, item: self.item.clone() }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.item
    }
}

impl<T> PartialEq for Shared<T> {
    fn eq(&self, other: &Shared<T>) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl<T> Eq for Shared<T> {}

impl<T> Hash for Shared<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fingerprint.hash(state);
    }
}

impl<T: Debug> Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.item.fmt(f)
    }
}

/// Timers of the core that are due this soon run at once, before anything else happens: what they do is to tell of
/// decided slots and outcomes, and their messages may be as late as any.
const SOON: Duration = Duration::from_millis(1);

/// A server that runs. One that is down is nothing of its own: it is one to which nothing is delivered.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    pub shard: Shard,
    pub log: ModelLog,
    /// Its clock stands still but for the actions that move it.
    pub clock: Time,
    /// How often it has been restarted.
    pub life: u8,
}

/// Something that a turn handed over.
#[derive(Debug)]
pub enum Sent {
    Peer(NodeId, Message),
    Client(ClientId, Response),
    Remote(NodeId, Request),
    Paxos(paxos::Event),
    Shard(shard::Event),
}

/// What a turn handed over, each with the number of syncs before it.
#[derive(Default)]
struct Outbox {
    syncs: usize,
    sent: Vec<(usize, Sent)>,
}

impl Outbox {
    fn push(&mut self, sent: Sent) {
        self.sent.push((self.syncs, sent));
    }
}

impl Ports for Outbox {
    fn peer(&mut self, to: NodeId, message: &Message) {
        self.push(Sent::Peer(to, message.clone()));
    }

    fn client(&mut self, to: ClientId, response: Response) {
        self.push(Sent::Client(to, response));
    }

    fn remote(&mut self, to: NodeId, request: Request) {
        self.push(Sent::Remote(to, request));
    }

    fn connect(&mut self, _: NodeId) {}

    fn flush(&mut self) {}

    fn synced(&mut self, _: &CommitStats) {
        self.syncs += 1;
    }

    fn paxos_event(&mut self, event: paxos::Event) {
        self.push(Sent::Paxos(event));
    }

    fn shard_event(&mut self, event: shard::Event) {
        self.push(Sent::Shard(event));
    }
}

/// What became of a turn.
pub struct Turned {
    pub sent: Vec<Sent>,
    /// Promises and acceptances that were handed over before the disk held them (P1), in words.
    pub unkept: Option<String>,
    /// The fault came to pass: the server has lost its memory and was restored from its disk.
    pub died: bool,
}

impl Node {
    pub fn start(id: NodeId, topology: Topology, timeouts: Timeouts) -> Node {
        Node::restore(id, topology, timeouts, ModelLog::default(), Time::default(), 0)
    }

    /// Loses the memory and comes back with what is on disk.
    pub fn restart(&mut self, topology: Topology, timeouts: Timeouts) {
        let log = self.log.reopen();
        *self = Node::restore(self.shard.id(), topology, timeouts, log, self.clock, self.life + 1);
    }

    fn restore(
        id: NodeId,
        topology: Topology,
        timeouts: Timeouts,
        mut log: ModelLog,
        clock: Time,
        life: u8,
    ) -> Node {
        let recovered = log.durable().recovered();
        let limits = (timeouts, Limits::default());
        let shard = drive::restore(id, topology, limits, clock, 0, &mut log, recovered)
            .expect("a disk of the model can always be read");
        let mut node = Node { shard, log, clock, life };
        // Connections to other clusters stand at once, and are never in the way.
        let own = topology.shard_of_server(id);
        let others = topology.servers().filter(|server| topology.shard_of_server(*server) != own);
        let connected = others.map(|server| Input::Remote(txn::Input::Connected(server)));
        let turned = node.turn(connected.collect(), None);
        assert!(turned.sent.is_empty(), "a server that starts has nothing to say: {:?}", turned.sent);
        node
    }

    /// One turn, and what the core's clocks want right after it.
    pub fn turn(&mut self, inputs: Vec<Input>, fault: Option<Fault>) -> Turned {
        let mut turned = self.single_turn(inputs, fault);
        while !turned.died
            && self.shard.next_deadline() > self.clock
            && self.shard.next_deadline() <= self.clock + SOON
        {
            self.clock = self.shard.next_deadline();
            let more = self.single_turn(vec![Input::Timer { random: 0 }], None);
            turned.sent.extend(more.sent);
            turned.unkept = turned.unkept.or(more.unkept);
        }
        turned
    }

    fn single_turn(&mut self, inputs: Vec<Input>, fault: Option<Fault>) -> Turned {
        let mut outbox = Outbox::default();
        self.log.begin_turn(fault);
        let done = drive::turn(self.clock, &mut self.shard, &mut self.log, inputs, &mut outbox);
        let unkept = outbox.sent.iter().find_map(|(syncs, sent)| self.unkept(*syncs, sent));
        self.log.end_turn();
        Turned { sent: outbox.sent.into_iter().map(|(_, s)| s).collect(), unkept, died: done.is_err() }
    }

    /// P1: a promise or an acceptance that leaves is on disk, and so is what it says of slots.
    fn unkept(&self, syncs: usize, sent: &Sent) -> Option<String> {
        let Sent::Peer(to, message) = sent else { return None };
        let disk = &self.log.synced[syncs];
        let (ballot, position) = match message {
            Message::Prepare(m) => (m.ballot, m.decided),
            Message::Promise(m) => (m.ballot, Slot(m.decided.0 + m.votes.len() as u64)),
            Message::Accepted(m) => (m.ballot, m.position),
            Message::HeartbeatReply(m) => (m.ballot, m.position),
            _ => return None,
        };
        let promised = disk.promised >= ballot;
        let held = (1..=position.0).map(Slot).all(|slot| {
            let Some((held_in, value)) = disk.value(slot) else { return false };
            // A slot that is decided may stand there under an older ballot, and so may a vote that a promise tells of.
            let decided = slot <= self.shard.replica().decided() && Some(value) == self.decided_value(slot);
            *held_in == ballot || decided || matches!(message, Message::Promise(_))
        });
        (!promised || !held).then(|| format!("{message:?} to {to}, but the disk holds {disk:?}"))
    }

    /// The value of a decided slot.
    pub fn decided_value(&self, slot: Slot) -> Option<&Value> {
        let in_memory = self.shard.replica().entry(slot);
        in_memory.or_else(|| self.log.durable().value(slot)).map(|(_, value)| value)
    }
}
