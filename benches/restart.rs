//! How fast a server starts, and what its state costs: `cargo bench --bench restart`.
//!
//! Each figure is the median of several runs; the disk is the temporary directory's.

use std::time::{Duration, Instant};

use shardpaxosbank::bank::command::{self, Range};
use shardpaxosbank::bank::{Bank, BlockResult, Effects};
use shardpaxosbank::config::{Limits, Timeouts, Topology};
use shardpaxosbank::drive;
use shardpaxosbank::storage::{Expected, FileDisk, Identity, Pieces, Wal};
use shardpaxosbank::types::{
    AccountId, Ballot, Cut, NodeId, Record, Session, ShardId, Slot, Time, Transfer, Value,
};

const RUNS: usize = 5;
const SEGMENT: u64 = 4 * 1024 * 1024;
const ME: NodeId = NodeId(1);

/// Transfers in a slot: what a busy leader puts into one.
const BATCH: u32 = 1000;
const TRANSFERS: u32 = 4_000_000;
const MANY_ACCOUNTS: u64 = 10_000_000;

fn topology(accounts: u64) -> Topology {
    Topology { clusters: 1, servers_per_cluster: 1, accounts, initial_balance: 1000 }
}

fn identity(topology: Topology) -> Identity {
    Identity { cluster_id: 1, topology, server: ME, incarnation: 1, founder: true }
}

fn expected(topology: Topology) -> Expected {
    Expected { cluster_id: Some(1), topology, server: ME }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn print(what: &str, figure: String) {
    println!("{what:<48} {figure}");
}

/// Megabytes in memory, from the kernel.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
}

/// The value of one slot: transfers between accounts that are spread as those of many clients are.
fn batch(session: Session, first: u64, accounts: u64) -> Value {
    batch_of(BATCH, session, first, accounts)
}

fn batch_of(count: u32, session: Session, first: u64, accounts: u64) -> Value {
    let spread = |n: u64| AccountId(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % accounts + 1);
    let transfer = |seq: u64| {
        let (from, to) = (spread(seq), spread(seq ^ 0x5555));
        Transfer { from, to: if from == to { AccountId(from.0 % accounts + 1) } else { to }, amount: 1 }
    };
    let transfers: Vec<Transfer> = (first..first + u64::from(count)).map(transfer).collect();
    let mut bytes = Vec::new();
    command::put_mark(&mut bytes, session, first);
    command::put_transfers(&mut bytes, Range { session, first, count }, &transfers);
    Value::from_slice(&bytes)
}

/// Writes a log of decided transfers, a few slots in each group; returns the bytes of its groups, and those of values.
fn write_log(disk: FileDisk, topology: Topology) -> (u64, u64) {
    let mut wal = Wal::format(disk, identity(topology), SEGMENT).expect("an empty directory");
    let ballot = Ballot::new(1, ME);
    let mut open = Vec::new();
    command::put_open(&mut open);
    wal.append(&Record::Promise(ballot));
    wal.append(&Record::Accept { slot: Slot(1), ballot, value: Value::from_slice(&open) });
    let session = Session::new(ShardId(1), 1);
    let slots = u64::from(TRANSFERS / BATCH);
    let (mut bytes, mut values) = (0, 0);
    for n in 0..slots {
        let value = batch(session, 1 + n * u64::from(BATCH), topology.accounts);
        values += value.len() as u64;
        wal.append(&Record::Accept { slot: Slot(n + 2), ballot, value });
        wal.set_decided(Slot(n + 1));
        if n % 16 == 15 {
            bytes += wal.commit().expect("space").bytes;
        }
    }
    wal.append(&Record::Decided(Slot(slots + 1)));
    (bytes + wal.commit().expect("space").bytes, values)
}

fn log_of_transfers() {
    let topology = topology(1_000_000);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let place = dir.path().join("S1");
    let (bytes, values) = write_log(FileDisk::open(&place).expect("a directory"), topology);
    let (mut verified, mut applied, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let disk = FileDisk::open(&place).expect("a directory");
        let begun = Instant::now();
        let (mut wal, recovered) = Wal::open(disk, expected(topology)).expect("a sound log");
        verified.push(begun.elapsed());
        let begun = Instant::now();
        let usual = (Timeouts::default(), Limits::default());
        let shard =
            drive::restore(ME, topology, usual, Time(0), 1, &mut wal, recovered).expect("a sound log");
        applied.push(begun.elapsed());
        assert_eq!(shard.bank().applied(), Slot(u64::from(TRANSFERS / BATCH) + 1));
    }
    for _ in 0..RUNS {
        let mut bank = Bank::new(topology, ShardId(1));
        let mut effects = Effects::default();
        let mut open = Vec::new();
        command::put_open(&mut open);
        bank.apply(Slot(1), &Value::from_slice(&open), &mut effects);
        let [BlockResult::Opened(session)] = effects.results[..] else { panic!("an open opens") };
        let values: Vec<Value> =
            (0..500).map(|n| batch(session, 1 + n * u64::from(BATCH), topology.accounts)).collect();
        let begun = Instant::now();
        for (slot, value) in (2..).map(Slot).zip(&values) {
            bank.apply(slot, value, &mut effects);
        }
        alone.push(begun.elapsed());
    }
    let rate = |n: f64, time: Duration| n / time.as_secs_f64() / 1e6;
    print("log", format!("{:.0} MB, {TRANSFERS} transfers, {BATCH} in a slot", bytes as f64 / 1e6));
    print("log verified at a start", format!("{:.0} MB/s", rate(bytes as f64, median(verified))));
    let count = f64::from(TRANSFERS);
    print(
        "log read again and applied at a start",
        format!("{:.2} M transfers/s", rate(count, median(applied))),
    );
    print(
        "applied, from memory",
        format!("{:.2} M transfers/s", rate(500.0 * f64::from(BATCH), median(alone))),
    );
    let framing = (bytes - values) as f64 / f64::from(TRANSFERS / BATCH);
    print("log beyond the value, for each slot", format!("{framing:.1} bytes"));
}

/// An image as a source of pieces, without the check that servers make.
#[derive(Debug)]
struct Source(shardpaxosbank::bank::Image);

impl Pieces for Source {
    fn cut(&self) -> Cut {
        self.0.cut()
    }

    fn piece(&mut self, n: u64) -> std::io::Result<Vec<u8>> {
        Ok(self.0.piece(n))
    }
}

/// What the first slot after a cut takes, which copies every chunk of balances that it changes, beside the one after it.
fn first_slots_after_a_cut(bank: &Bank, count: u32) {
    let (mut firsts, mut seconds, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let mut bank = bank.clone();
        let mut effects = Effects::default();
        let mut open = Vec::new();
        command::put_open(&mut open);
        let mut slot = bank.applied().next();
        bank.apply(slot, &Value::from_slice(&open), &mut effects);
        let [BlockResult::Opened(session)] = effects.results[..] else { panic!("an open opens") };
        let mut values = (0..3).map(|n| batch_of(count, session, 1 + n * u64::from(count), MANY_ACCOUNTS));
        let mut apply = |bank: &mut Bank| {
            slot = slot.next();
            let value = values.next().expect("three");
            let begun = Instant::now();
            bank.apply(slot, &value, &mut effects);
            begun.elapsed()
        };
        // Nothing is shared with the bank that this is a clone of any more, where it matters.
        apply(&mut bank);
        let image = bank.image(Limits::default().piece_bytes);
        firsts.push(apply(&mut bank));
        seconds.push(apply(&mut bank));
        let begun = Instant::now();
        drop(image);
        ends.push(begun.elapsed());
    }
    let ms = |times| median(times).as_secs_f64() * 1e3;
    print(
        &format!("first slot after a cut, {count} transfers"),
        format!("{:.2} ms, the next {:.2} ms, end of the cut {:.2} ms", ms(firsts), ms(seconds), ms(ends)),
    );
}

fn many_accounts() {
    let topology = topology(MANY_ACCOUNTS);
    let before = resident();
    let bank = Bank::new(topology, ShardId(1));
    let each = (resident() - before) * 1024.0 * 1024.0 / MANY_ACCOUNTS as f64;
    print("memory of 10 million accounts", format!("{each:.1} bytes each"));

    let dir = tempfile::tempdir().expect("a temporary directory");
    let place = dir.path().join("S1");
    let disk = FileDisk::open(&place).expect("a directory");
    let mut wal = Wal::format(disk, identity(topology), SEGMENT).expect("an empty directory");
    // The state is that of slot 64, although nothing happened in it.
    let noop = |slot| Record::Accept { slot: Slot(slot), ballot: Ballot::new(1, ME), value: Value::noop() };
    let mut bank = bank;
    let mut effects = Effects::default();
    for slot in 1..=64 {
        wal.append(&noop(slot));
        bank.apply(Slot(slot), &Value::noop(), &mut effects);
    }
    wal.append(&Record::Decided(Slot(64)));
    wal.commit().expect("space");
    let mut cuts = Vec::new();
    for _ in 0..RUNS {
        let begun = Instant::now();
        let image = bank.image(Limits::default().piece_bytes);
        cuts.push(begun.elapsed());
        drop(image);
    }
    print("a cut of them", format!("{:.2} ms", median(cuts).as_secs_f64() * 1e3));
    first_slots_after_a_cut(&bank, BATCH);
    first_slots_after_a_cut(&bank, 8190);
    wal.begin_snapshot(Box::new(Source(bank.image(Limits::default().piece_bytes))), false).expect("space");
    let (begun, mut steps) = (Instant::now(), Vec::new());
    while wal.has_work() {
        let step = Instant::now();
        wal.prepare_ahead().expect("space");
        steps.push(step.elapsed());
    }
    let took = begun.elapsed();
    let worst = steps.iter().max().copied().unwrap_or_default();
    print("written as a snapshot", format!("{:.0} ms in {} steps", took.as_secs_f64() * 1e3, steps.len()));
    print(
        "a step",
        format!("{:.2} ms (longest {:.1} ms)", median(steps).as_secs_f64() * 1e3, worst.as_secs_f64() * 1e3),
    );
    drop((wal, bank));
    let (mut opened, mut loaded) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let disk = FileDisk::open(&place).expect("a directory");
        let begun = Instant::now();
        let (mut wal, recovered) = Wal::open(disk, expected(topology)).expect("sound");
        opened.push(begun.elapsed());
        let begun = Instant::now();
        let usual = (Timeouts::default(), Limits::default());
        drive::restore(ME, topology, usual, Time(0), 1, &mut wal, recovered).expect("sound");
        loaded.push(begun.elapsed());
    }
    let (opened, loaded) = (median(opened), median(loaded));
    print("snapshot verified, and its log", format!("{:.0} ms", opened.as_secs_f64() * 1e3));
    print("loaded, digest computed anew", format!("{:.0} ms", loaded.as_secs_f64() * 1e3));
}

fn main() {
    many_accounts();
    log_of_transfers();
}
