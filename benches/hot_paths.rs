//! What single steps of a server cost, by themselves: `cargo bench --bench hot_paths`, and `-- apply` for one of them.
//!
//! Each works on slots of 8,190 transfers, the most that one holds, between accounts drawn from 10,000.

use std::collections::VecDeque;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use shardpaxosbank::bank::command::{self, Range};
use shardpaxosbank::bank::{Bank, Effects};
use shardpaxosbank::codec::{self, kind};
use shardpaxosbank::config::{Timeouts, Topology, limits};
use shardpaxosbank::metrics::Latencies;
use shardpaxosbank::net;
use shardpaxosbank::paxos::message::{Accept, Accepted, PreVoteReply, Promise};
use shardpaxosbank::paxos::{Message, Replica};
use shardpaxosbank::shard::{Input, Output, Shard};
use shardpaxosbank::storage::{FileDisk, Identity, Wal};
use shardpaxosbank::txn::message::Request;
use shardpaxosbank::types::{
    AccountId, Ballot, ClientId, Incarnation, NodeId, Record, Session, ShardId, Slot, Time, Transfer, Value,
};

const BATCH: u64 = 8190;
const TOPOLOGY: Topology =
    Topology { clusters: 1, servers_per_cluster: 3, accounts: 10_000, initial_balance: 1_000_000_000 };
const S1: NodeId = NodeId(1);
const S2: NodeId = NodeId(2);
const S3: NodeId = NodeId(3);
const DISK: Incarnation = Incarnation(0);

/// The values of the first slots of a bank: a session is opened, and then used, with all before it finished.
struct Values {
    rng: SmallRng,
    next: u64,
}

impl Values {
    fn new() -> Values {
        Values { rng: SmallRng::seed_from_u64(1), next: 0 }
    }

    fn next(&mut self) -> Value {
        let mut bytes = Vec::new();
        let session = Session::new(ShardId(1), 1);
        if self.next == 0 {
            command::put_open(&mut bytes);
        } else {
            let range = Range { session, first: (self.next - 1) * BATCH + 1, count: BATCH as u32 };
            command::put_mark(&mut bytes, session, range.first);
            let mut account = || AccountId(self.rng.random_range(1..=TOPOLOGY.accounts));
            let transfers: Vec<Transfer> =
                (0..BATCH).map(|_| Transfer { from: account(), to: account(), amount: 3 }).collect();
            command::put_transfers(&mut bytes, range, &transfers);
        }
        self.next += 1;
        Value(bytes.into())
    }
}

fn apply(c: &mut Criterion) {
    let (mut values, mut bank, mut effects) =
        (Values::new(), Bank::new(TOPOLOGY, ShardId(1)), Effects::default());
    bank.apply(Slot(1), &values.next(), &mut effects);
    let mut group = c.benchmark_group("apply");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("a slot", |b| {
        b.iter_batched(
            || values.next(),
            |value| bank.apply(bank.applied().next(), &value, &mut effects),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn server() -> Shard {
    let servers = vec![S1, S2, S3];
    let replica =
        Replica::new(S1, servers, Timeouts::default(), Time(0), 1, (Ballot::ZERO, Slot::ZERO, Vec::new()));
    Shard::new(S1, TOPOLOGY, Timeouts::default(), Time(0), replica, Bank::new(TOPOLOGY, ShardId(1)))
}

/// Steps, and then what it says to itself, as if its disk took no time.
fn turn(shard: &mut Shard, now: Time, input: Input) {
    let mut inputs = VecDeque::from([input]);
    while let Some(input) = inputs.pop_front() {
        let mut out = Output::default();
        shard.step(now, input, &mut out);
        shard.step(now, Input::TurnEnd, &mut out);
        let own = out.paxos.after.into_iter().filter(|(to, _)| *to == S1);
        inputs.extend(own.map(|(from, message)| Input::Peer { from, message }));
    }
}

fn step(c: &mut Criterion) {
    let mut group = c.benchmark_group("step");
    group.throughput(Throughput::Elements(BATCH));

    let (mut values, mut shard) = (Values::new(), server());
    let mut slot = 0;
    group.bench_function("a follower: a slot is accepted, and the one before it decided", |b| {
        b.iter_batched(
            || {
                slot += 1;
                let (decided, first) = (Slot(slot - 1), Slot(slot));
                Accept { ballot: Ballot::new(1, S2), decided, first, values: vec![values.next()] }
            },
            |accept| turn(&mut shard, Time(1), Input::Peer { from: S2, message: Message::Accept(accept) }),
            BatchSize::PerIteration,
        );
    });

    let (mut values, mut shard) = (Values::new(), server());
    let now = shard.next_deadline();
    let ballot = Ballot::new(1, S1);
    let from_s2 = |message| Input::Peer { from: S2, message };
    turn(&mut shard, now, Input::Timer { random: 1 });
    let granted = PreVoteReply { attempt: 1, granted: true, promised: Ballot::ZERO };
    turn(&mut shard, now, from_s2(Message::PreVoteReply(granted)));
    let promise = Promise { ballot, decided: Slot::ZERO, votes: Vec::new(), loss: None, incarnation: DISK };
    turn(&mut shard, now, from_s2(Message::Promise(promise)));
    assert!(shard.replica().is_leader());
    group.bench_function("a leader: a request becomes a slot, and is decided", |b| {
        b.iter_batched(
            || Request::Submit { request: 1, blocks: values.next() },
            |request| {
                turn(&mut shard, now, Input::Request { client: ClientId(1), request });
                let position = shard.replica().position();
                turn(
                    &mut shard,
                    now,
                    from_s2(Message::Accepted(Accepted { ballot, position, incarnation: DISK })),
                );
            },
            BatchSize::PerIteration,
        );
    });
    assert!(shard.bank().applied() > Slot(1), "its slots were decided");
    group.finish();
}

fn frames(c: &mut Criterion) {
    let mut values = Values::new();
    values.next();
    let accept =
        Accept { ballot: Ballot::new(1, S1), decided: Slot(1), first: Slot(2), values: vec![values.next()] };
    let message = Message::Accept(accept);
    let mut group = c.benchmark_group("codec");
    group.throughput(Throughput::Elements(BATCH));
    let mut bytes = Vec::new();
    group.bench_function("a proposal to a frame", |b| {
        b.iter(|| {
            bytes.clear();
            net::encode(kind::PEER, &mut bytes, |out| codec::encode(&message, out));
            bytes.len()
        });
    });
    group.bench_function("a frame to a proposal", |b| {
        let mut reader = net::FrameReader::new();
        b.iter(|| {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let space = reader.space(limits::PEER_FRAME_BYTES);
                let count = space.len().min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                reader.filled(count);
                rest = &rest[count..];
            }
            let frame = reader.next_frame(limits::PEER_FRAME_BYTES).expect("sound").expect("whole");
            codec::decode::<Message>(frame.payload).expect("a message")
        });
    });
    group.finish();
}

fn log(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = FileDisk::open(dir.path().join("S1")).expect("a disk");
    let identity = Identity { cluster_id: 1, topology: TOPOLOGY, server: S1, incarnation: 1, founder: true };
    let mut wal = Wal::format(disk, identity, limits::SEGMENT_BYTES).expect("a log");
    let mut values = Values::new();
    let mut slot = 0;
    let mut group = c.benchmark_group("log");
    group.throughput(Throughput::Elements(BATCH)).measurement_time(Duration::from_secs(3));
    group.bench_function("a slot is written and synced, and space made ahead", |b| {
        b.iter_batched(
            || {
                slot += 1;
                Record::Accept { slot: Slot(slot), ballot: Ballot::new(1, S1), value: values.next() }
            },
            |record| {
                wal.append(&record);
                wal.commit().expect("a disk");
                wal.prepare_ahead().expect("a disk");
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

fn histogram(c: &mut Criterion) {
    let mut latencies = Latencies::default();
    let mut us = 1;
    c.bench_function("histogram: a latency is recorded", |b| {
        b.iter(|| {
            us = us * 31 % 100_003;
            latencies.record(Duration::from_micros(us));
        });
    });
}

criterion_group!(benches, apply, step, frames, log, histogram);
criterion_main!(benches);
