//! Memory and disk of a server over 50 million transfers, with snapshots and a bounded audit log:
//! `cargo bench --bench endurance`.
//!
//! One server, alone in its cluster, with its real log on the temporary directory's disk; requests come without a network.

use std::time::Instant;

use shardpaxosbank::bank::Bank;
use shardpaxosbank::bank::command::{self, Range};
use shardpaxosbank::config::{Keep, Limits, Timeouts, Topology};
use shardpaxosbank::drive::{self, Ports};
use shardpaxosbank::paxos::{self, Message};
use shardpaxosbank::shard::{self, Input, Shard};
use shardpaxosbank::storage::{CommitStats, Disk, DiskFile, Expected, FileDisk, Identity, Retention, Wal};
use shardpaxosbank::txn::message::{Request, Response};
use shardpaxosbank::types::{AccountId, ClientId, NodeId, Session, ShardId, Time, Transfer, Value};

const TRANSFERS: u64 = 50_000_000;
const STEPS: u64 = 10;
const BATCH: u64 = 1000;
const ACCOUNTS: u64 = 1_000_000;
const KEEP: Keep = Keep { snapshot_mib: 64, audit_mib: 128, audit_days: 0 };

/// A network without anybody else in it.
#[derive(Default)]
struct Nobody {
    answered: u64,
}

impl Ports for Nobody {
    fn peer(&mut self, _: NodeId, _: &Message) {}
    fn client(&mut self, _: ClientId, response: Response) {
        assert!(matches!(response, Response::Done { .. }), "{response:?}");
        self.answered += 1;
    }
    fn remote(&mut self, _: NodeId, _: Request) {}
    fn connect(&mut self, _: NodeId) {}
    fn flush(&mut self) {}
    fn synced(&mut self, _: &CommitStats) {}
    fn paxos_event(&mut self, _: paxos::Event) {}
    fn shard_event(&mut self, _: shard::Event) {}
}

/// Megabytes in memory, from the kernel.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
}

fn on_disk(disk: &FileDisk) -> f64 {
    let names = disk.list().expect("a directory");
    let bytes: u64 = names.iter().map(|name| disk.open(name).and_then(|file| file.len()).unwrap_or(0)).sum();
    bytes as f64 / 1e6
}

fn blocks(session: Session, first: u64) -> Value {
    let spread = |n: u64| AccountId(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (ACCOUNTS - 1) + 1);
    let transfer = |seq: u64| Transfer { from: spread(seq), to: AccountId(spread(seq).0 + 1), amount: 1 };
    let transfers: Vec<Transfer> = (first..first + BATCH).map(transfer).collect();
    let mut bytes = Vec::new();
    command::put_mark(&mut bytes, session, first);
    command::put_transfers(&mut bytes, Range { session, first, count: BATCH as u32 }, &transfers);
    Value::from_slice(&bytes)
}

fn main() {
    let topology =
        Topology { clusters: 1, servers_per_cluster: 1, accounts: ACCOUNTS, initial_balance: 1000 };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = FileDisk::open(dir.path().join("S1")).expect("a directory");
    let identity = Identity { cluster_id: 1, topology, server: NodeId(1), incarnation: 1, founder: true };
    drop(Wal::format(disk.clone(), identity, 4 << 20).expect("an empty directory"));
    let expected = Expected { cluster_id: Some(1), topology, server: NodeId(1) };
    let (wal, recovered) = Wal::open(disk.clone(), expected).expect("sound");
    let retention = Retention { audit_bytes: KEEP.audit_bytes(), audit_age: KEEP.audit_age() };
    let mut wal = wal.with_retention(retention).expect("the disk works");
    let limits = Limits { snapshot_bytes: KEEP.snapshot_bytes(), ..Limits::default() };
    let usual = (Timeouts::default(), limits);
    let mut shard =
        drive::restore(NodeId(1), topology, usual, Time(0), 1, &mut wal, recovered).expect("sound");

    let begun = Instant::now();
    let mut ports = Nobody::default();
    let mut turn = |shard: &mut Shard, wal: &mut Wal<FileDisk>, inputs: Vec<Input>| {
        let now = Time(begun.elapsed().as_micros() as u64);
        let timer = (shard.next_deadline() <= now).then_some(Input::Timer { random: 1 });
        let inputs = inputs.into_iter().chain(timer);
        drive::turn(now, shard, wal, inputs, &mut ports).expect("the disk works");
        wal.prepare_ahead().expect("the disk works");
        ports.answered
    };
    while !shard.replica().is_leader() {
        turn(&mut shard, &mut wal, Vec::new());
    }
    let mut request = 0;
    let mut submit = |blocks: Value| {
        request += 1;
        Input::Request { client: ClientId(1), request: Request::Submit { request, blocks } }
    };
    let mut open = Vec::new();
    command::put_open(&mut open);
    turn(&mut shard, &mut wal, vec![submit(Value::from_slice(&open))]);
    let session = Session::new(ShardId(1), 1);

    println!("transfers   memory     disk   snapshot of slot   oldest segment   M transfers/s");
    let mut sent = 0;
    for step in 1..=STEPS {
        let timed = Instant::now();
        while sent < step * TRANSFERS / STEPS {
            // A few clients' requests in each turn, and so one sync for all of them.
            let inputs = (0..8).map(|n| submit(blocks(session, 1 + sent + n * BATCH))).collect();
            turn(&mut shard, &mut wal, inputs);
            sent += 8 * BATCH;
        }
        let answered = turn(&mut shard, &mut wal, Vec::new());
        assert_eq!(answered, 1 + sent / BATCH, "everything was answered");
        println!(
            "{sent:>9} {:>5.0} MB {:>5.0} MB {:>18} {:>16} {:>15.2}",
            resident(),
            on_disk(&disk),
            wal.snapshot().map_or(0, |cut| cut.slot.0),
            wal.oldest_segment(),
            (TRANSFERS / STEPS) as f64 / timed.elapsed().as_secs_f64() / 1e6,
        );
    }
    assert_eq!(Bank::total(shard.bank()), u128::from(ACCOUNTS) * 1000);
}
