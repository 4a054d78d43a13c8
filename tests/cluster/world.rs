//! Three servers with the production log and the production turn, in virtual time, on a network that loses nothing.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use shardpaxosbank::bank::command;
use shardpaxosbank::config::Topology;
use shardpaxosbank::drive::{self, Ports};
use shardpaxosbank::paxos::{self, Message};
use shardpaxosbank::shard::{self, Divergence, Input, Shard};
use shardpaxosbank::storage::{CommitStats, Expected, Identity, MemDisk, Wal};
use shardpaxosbank::txn::message::{Request, Response};
use shardpaxosbank::types::{ClientId, NodeId, Time, Value};

pub const TOPOLOGY: Topology =
    Topology { clusters: 1, servers_per_cluster: 3, accounts: 4, initial_balance: 10 };
pub const CLIENT: ClientId = ClientId(1);
pub const S1: NodeId = NodeId(1);
pub const S2: NodeId = NodeId(2);
pub const S3: NodeId = NodeId(3);

pub const SEGMENT_BYTES: u64 = 8192;

/// A new log of a server.
pub fn wal(disk: &MemDisk, id: NodeId) -> Wal<MemDisk> {
    let identity = Identity { cluster_id: 1, topology: TOPOLOGY, server: id, incarnation: 1, founder: true };
    Wal::format(disk.clone(), identity, SEGMENT_BYTES).expect("a new disk takes a log");
    Wal::open(disk.clone(), expected(id)).expect("it was just formatted").0
}

pub fn expected(id: NodeId) -> Expected {
    Expected { cluster_id: Some(1), topology: TOPOLOGY, server: id }
}

#[derive(Default)]
struct Outbox {
    peers: Vec<(NodeId, Message)>,
    replies: Vec<Response>,
    events: Vec<paxos::Event>,
}

impl Ports for Outbox {
    fn peer(&mut self, to: NodeId, message: &Message) {
        self.peers.push((to, message.clone()));
    }
    fn client(&mut self, _: ClientId, response: Response) {
        self.replies.push(response);
    }
    fn remote(&mut self, _: NodeId, _: Request) {}
    fn connect(&mut self, _: NodeId) {}
    fn flush(&mut self) {}
    fn synced(&mut self, _: &CommitStats) {}
    fn paxos_event(&mut self, event: paxos::Event) {
        self.events.push(event);
    }
    fn shard_event(&mut self, _: shard::Event) {}
}

pub struct World {
    pub now: Time,
    pub servers: BTreeMap<NodeId, (Shard, Wal<MemDisk>)>,
    wire: VecDeque<(NodeId, NodeId, Message)>,
    pub replies: Vec<Response>,
    pub events: Vec<paxos::Event>,
    pub stopped: BTreeMap<NodeId, io::Error>,
    next: u64,
}

impl World {
    pub fn new(now: Time, servers: BTreeMap<NodeId, (Shard, Wal<MemDisk>)>) -> World {
        World {
            now,
            servers,
            wire: VecDeque::new(),
            replies: Vec::new(),
            events: Vec::new(),
            stopped: BTreeMap::new(),
            next: 1,
        }
    }

    /// S1 is asked first, and leads.
    pub fn elect(&mut self) {
        let request = Request::Probe { request: 0, campaign: true };
        self.turn(S1, Input::Request { client: CLIENT, request });
        self.pass(Duration::from_millis(200));
        assert!(self.servers[&S1].0.replica().is_leader());
        self.replies.clear();
    }

    pub fn turn(&mut self, id: NodeId, input: Input) {
        let Some((shard, wal)) = self.servers.get_mut(&id) else { return };
        let mut outbox = Outbox::default();
        let done = drive::turn(self.now, shard, wal, [input], &mut outbox);
        self.wire.extend(outbox.peers.into_iter().map(|(to, message)| (id, to, message)));
        self.replies.extend(outbox.replies);
        self.events.extend(outbox.events);
        if let Err(e) = done {
            self.servers.remove(&id);
            self.stopped.insert(id, e);
        }
    }

    fn settle(&mut self) {
        while let Some((from, to, message)) = self.wire.pop_front() {
            self.turn(to, Input::Peer { from, message });
        }
    }

    /// Lets time pass, from one deadline to the next.
    pub fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        while self.now < end {
            self.settle();
            let deadlines = self.servers.values().map(|(shard, _)| shard.next_deadline());
            self.now = deadlines.min().map_or(end, |due| due.max(Time(self.now.0 + 1))).min(end);
            for id in [S1, S2, S3] {
                if self.servers.get(&id).is_some_and(|(shard, _)| shard.next_deadline() <= self.now) {
                    let random = self.now.0.wrapping_mul(u64::from(id.0)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    self.turn(id, Input::Timer { random });
                }
            }
        }
        self.settle();
    }

    /// Asks a server to open a session, which takes a slot, and waits for the answer.
    pub fn open_at(&mut self, id: NodeId) -> Vec<Response> {
        let mut blocks = Vec::new();
        command::put_open(&mut blocks);
        self.next += 1;
        let request = Request::Submit { request: self.next, blocks: Value::from_slice(&blocks) };
        self.turn(id, Input::Request { client: CLIENT, request });
        self.pass(Duration::from_millis(3));
        std::mem::take(&mut self.replies)
    }

    pub fn open(&mut self) -> Vec<Response> {
        self.open_at(S1)
    }

    pub fn divergence(&self, id: NodeId) -> &Divergence {
        drive::divergence(&self.stopped[&id]).expect("its state is the reason, not its disk")
    }
}
