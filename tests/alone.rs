//! One server, alone in its cluster, with the production turn and log on a disk that has no space.

use shardpaxosbank::audit::{Listing, Replay};
use shardpaxosbank::bank::command::{self, Range};
use shardpaxosbank::config::{Limits, Timeouts, Topology};
use shardpaxosbank::drive::{self, Ports};
use shardpaxosbank::paxos::{self, Message};
use shardpaxosbank::shard::{self, Input, Shard};
use shardpaxosbank::storage::{CommitStats, Expected, Identity, MemDisk, Wal};
use shardpaxosbank::txn::message::{Request, Response};
use shardpaxosbank::types::{
    AccountId, Ballot, ClientId, NodeId, Record, Session, ShardId, Slot, Time, Transfer, Value,
};

const ME: NodeId = NodeId(1);
const TOPOLOGY: Topology = Topology { clusters: 1, servers_per_cluster: 1, accounts: 4, initial_balance: 10 };
const SEGMENT: u64 = 1 << 20;

struct Nobody;

impl Ports for Nobody {
    fn peer(&mut self, _: NodeId, _: &Message) {}
    fn client(&mut self, _: ClientId, _: Response) {}
    fn remote(&mut self, _: NodeId, _: Request) {}
    fn connect(&mut self, _: NodeId) {}
    fn flush(&mut self) {}
    fn synced(&mut self, _: &CommitStats) {}
    fn paxos_event(&mut self, _: paxos::Event) {}
    fn shard_event(&mut self, _: shard::Event) {}
}

struct Server {
    shard: Shard,
    wal: Wal<MemDisk>,
    now: Time,
}

impl Server {
    fn open(disk: &MemDisk) -> Server {
        let expected = Expected { cluster_id: Some(1), topology: TOPOLOGY, server: ME };
        let (mut wal, recovered) = Wal::open(disk.clone(), expected).expect("sound");
        let usual = (Timeouts::default(), Limits::default());
        let shard = drive::restore(ME, TOPOLOGY, usual, Time(0), 1, &mut wal, recovered).expect("sound");
        Server { shard, wal, now: Time(0) }
    }

    fn turns(&mut self, n: usize) {
        for _ in 0..n {
            self.now = self.now.max(self.shard.next_deadline());
            self.turn(Input::Timer { random: 1 });
        }
    }

    fn turn(&mut self, input: Input) {
        drive::turn(self.now, &mut self.shard, &mut self.wal, [input], &mut Nobody)
            .and_then(|()| self.wal.prepare_ahead())
            .expect("a full disk is no failure");
    }

    fn submit(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        let mut blocks = Vec::new();
        put(&mut blocks);
        let request = Request::Submit { request: 1, blocks: Value(blocks.into()) };
        self.turn(Input::Request { client: ClientId(1), request });
    }
}

fn format(disk: &MemDisk) -> Wal<MemDisk> {
    let identity = Identity { cluster_id: 1, topology: TOPOLOGY, server: ME, incarnation: 1, founder: true };
    Wal::format(disk.clone(), identity, SEGMENT).expect("an empty disk")
}

/// Its own promise brings all its votes up again, in the turn in which it prepares: more than the reserve. It asked for
/// space for what others told it, not for what it told itself, and a full disk stopped it, at every start.
#[test]
fn votes_without_room_to_be_proposed_again_wait_for_space() {
    let disk = MemDisk::new();
    let mut wal = format(&disk);
    let (ballot, votes) = (Ballot::new(1, ME), 30);
    wal.append(&Record::Promise(ballot));
    // Marks of a session that is unknown: large, well formed, and without any effect.
    let mut value = Vec::new();
    while value.len() < 200_000 {
        command::put_mark(&mut value, Session::new(ShardId(1), 9), 1);
    }
    let value = Value(value.into());
    for slot in 1..=votes {
        wal.append(&Record::Accept { slot: Slot(slot), ballot, value: value.clone() });
    }
    wal.commit().expect("space");
    drop(wal);
    disk.set_capacity(Some(disk.used() + 3 * SEGMENT));

    let mut server = Server::open(&disk);
    server.turns(50);
    assert!(server.shard.bank().applied() < Slot(votes));
    disk.set_capacity(None);
    server.turns(50);
    assert!(server.shard.replica().is_leader());
    assert_eq!(server.shard.bank().applied(), Slot(votes));
}

/// The list was read while the server went on: what it did meanwhile is not asked for, and was taken for damage.
#[test]
fn a_list_ends_where_it_was_asked_for() {
    let disk = MemDisk::new();
    drop(format(&disk));
    let mut server = Server::open(&disk);
    server.turns(10);
    server.submit(command::put_open);
    let session = Session::new(ShardId(1), 1);
    let mut seq = 0;
    let mut transfer = |server: &mut Server| {
        seq += 1;
        let (from, to) = (AccountId(seq % 2 + 1), AccountId((seq + 1) % 2 + 1));
        let range = Range { session, first: seq, count: 1 };
        server.submit(|out| command::put_transfers(out, range, &[Transfer { from, to, amount: 1 }]));
    };
    for _ in 0..150 {
        transfer(&mut server);
    }
    for to in [Slot(64), Slot(100), server.shard.bank().applied()] {
        let (mut replay, mut listing) = (Replay::new(&server.wal, to), Listing::default());
        loop {
            let (part, last) = replay.advance(&server.wal, &server.shard).expect("nothing is damaged");
            listing.append(part);
            if last {
                break;
            }
            transfer(&mut server);
        }
        let slots: Vec<u64> = listing.committed.iter().map(|committed| committed.slot.0).collect();
        assert_eq!((slots, listing.gaps), ((2..=to.0).collect(), vec![]));
    }
}
