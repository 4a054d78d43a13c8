//! P4 end to end, without processes: three servers with the production log and the production turn, of which one holds
//! another state than the others from the start.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use shardpaxosbank::bank::{Bank, command};
use shardpaxosbank::config::{Limits, Timeouts, Topology};
use shardpaxosbank::drive::{self, Ports};
use shardpaxosbank::paxos::{self, Message, Replica};
use shardpaxosbank::shard::{self, Divergence, Input, Shard};
use shardpaxosbank::storage::{CommitStats, Expected, Identity, MemDisk, Wal};
use shardpaxosbank::txn::message::{Refusal, Request, Response};
use shardpaxosbank::types::{AccountId, Ballot, ClientId, NodeId, ShardId, Slot, Time, Value};

const TOPOLOGY: Topology = Topology { clusters: 1, servers_per_cluster: 3, accounts: 4, initial_balance: 10 };
const CLIENT: ClientId = ClientId(1);
const S1: NodeId = NodeId(1);
const S2: NodeId = NodeId(2);
const S3: NodeId = NodeId(3);

#[derive(Default)]
struct Outbox {
    peers: Vec<(NodeId, Message)>,
    replies: Vec<Response>,
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
    fn paxos_event(&mut self, _: paxos::Event) {}
    fn shard_event(&mut self, _: shard::Event) {}
}

struct World {
    now: Time,
    servers: BTreeMap<NodeId, (Shard, Wal<MemDisk>)>,
    wire: VecDeque<(NodeId, NodeId, Message)>,
    replies: Vec<Response>,
    stopped: BTreeMap<NodeId, io::Error>,
    next: u64,
}

impl World {
    /// These servers are up, and one of them opened its accounts with one unit more.
    fn new(up: &[NodeId], wrong: NodeId) -> World {
        let mut world = World {
            now: Time(1_000_000),
            servers: BTreeMap::new(),
            wire: VecDeque::new(),
            replies: Vec::new(),
            stopped: BTreeMap::new(),
            next: 1,
        };
        for id in up {
            let disk = MemDisk::new();
            let identity =
                Identity { cluster_id: 1, topology: TOPOLOGY, server: *id, incarnation: 1, founder: true };
            Wal::format(disk.clone(), identity, 65_536).expect("a new disk takes a log");
            let expected = Expected { cluster_id: Some(1), topology: TOPOLOGY, server: *id };
            let (wal, _) = Wal::open(disk, expected).expect("it was just formatted");
            let balance = TOPOLOGY.initial_balance + u64::from(*id == wrong);
            let bank = Bank::new(Topology { initial_balance: balance, ..TOPOLOGY }, ShardId(1));
            let servers = TOPOLOGY.servers().collect();
            let restored = (Ballot::ZERO, Slot::ZERO, Vec::new());
            let timeouts = Timeouts::default();
            let replica = Replica::new(*id, servers, timeouts, world.now, u64::from(id.0), restored);
            let limits = Limits { digest_slots: 4, ..Limits::default() };
            let shard = Shard::new(*id, TOPOLOGY, timeouts, world.now, replica, bank).with_limits(limits);
            world.servers.insert(*id, (shard, wal));
        }
        let request = Request::Probe { request: 0, campaign: true };
        world.turn(S1, Input::Request { client: CLIENT, request });
        world.pass(Duration::from_millis(200));
        assert!(world.servers[&S1].0.replica().is_leader());
        world.replies.clear();
        world
    }

    fn turn(&mut self, id: NodeId, input: Input) {
        let Some((shard, wal)) = self.servers.get_mut(&id) else { return };
        let mut outbox = Outbox::default();
        let done = drive::turn(self.now, shard, wal, [input], &mut outbox);
        self.wire.extend(outbox.peers.into_iter().map(|(to, message)| (id, to, message)));
        self.replies.extend(outbox.replies);
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

    fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        while self.now < end {
            self.settle();
            self.now = self.now + Duration::from_millis(1);
            for id in [S1, S2, S3] {
                if self.servers.get(&id).is_some_and(|(shard, _)| shard.next_deadline() <= self.now) {
                    self.turn(id, Input::Timer { random: 7 });
                }
            }
        }
        self.settle();
    }

    /// Asks the leader to open a session, which takes a slot, and waits for the answer.
    fn open(&mut self) -> Vec<Response> {
        let mut blocks = Vec::new();
        command::put_open(&mut blocks);
        self.next += 1;
        let request = Request::Submit { request: self.next, blocks: Value::from_slice(&blocks) };
        self.turn(S1, Input::Request { client: CLIENT, request });
        self.pass(Duration::from_millis(3));
        std::mem::take(&mut self.replies)
    }

    fn divergence(&self, id: NodeId) -> &Divergence {
        drive::divergence(&self.stopped[&id]).expect("its state is the reason, not its disk")
    }
}

#[test]
fn one_that_differs_from_two_stops_and_the_two_go_on() {
    let mut world = World::new(&[S1, S2, S3], S3);
    for slot in 1..=10 {
        assert!(matches!(world.open()[..], [Response::Done { .. }]), "slot {slot}");
        assert_eq!(world.stopped.contains_key(&S3), slot >= 4, "after slot {slot}");
    }
    assert_eq!(world.stopped.len(), 1);
    let text = world.stopped[&S3].to_string();
    let begin =
        "P4: the state of S3 differs from that of S1 and S2 since one of the slots 1 to 4, and a majority";
    assert!(text.starts_with(begin), "{text}");
    assert!(world.divergence(S3).outvoted);
    for id in [S1, S2] {
        let confirmed = world.servers[&id].0.confirmed_digest();
        assert_eq!(confirmed.map(|(slot, _)| slot), Some(Slot(8)), "{id}");
    }
}

#[test]
fn two_that_differ_and_hear_no_third_tell_clients_nothing_more_and_stop() {
    let mut world = World::new(&[S1, S2], S2);
    for slot in 1..=4 {
        assert!(matches!(world.open()[..], [Response::Done { .. }]), "slot {slot}");
    }
    let busy = |replies: &[Response]| matches!(replies, [Response::Refused { why: Refusal::Busy, .. }]);
    assert!(busy(&world.open()));
    let read = Request::Read { request: 99, account: AccountId(1), local: true };
    world.turn(S2, Input::Request { client: CLIENT, request: read });
    assert!(busy(&world.replies), "{:?}", world.replies);
    assert!(world.stopped.is_empty(), "the third may still come");
    world.pass(Timeouts::default().election() * 4);
    assert_eq!(world.stopped.keys().collect::<Vec<_>>(), [&S1, &S2]);
    assert!(!world.divergence(S1).outvoted && !world.divergence(S2).outvoted);
    let text = world.stopped[&S1].to_string();
    assert!(text.contains("S1 differs from that of S2") && text.contains("start all servers"), "{text}");
}
