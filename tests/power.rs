//! The power goes while real servers run: threads, sockets and clocks as always, over disks that forget what was not
//! synced. Several servers at once, or all of them, in the middle of whatever their threads are doing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Sender, unbounded};
use mio::Waker;
use parking_lot::Mutex;
use shardpaxosbank::config::{Limits, Timeouts, Topology, limits};
use shardpaxosbank::drive;
use shardpaxosbank::net::{Address, listen, listen_at};
use shardpaxosbank::runtime::client::{Client, Command, News, Row};
use shardpaxosbank::runtime::clock::Clock;
use shardpaxosbank::runtime::conns::{Context, Door, Endpoints};
use shardpaxosbank::runtime::node::{self, Control, Setup, poll_and_waker};
use shardpaxosbank::runtime::status::Status;
use shardpaxosbank::storage::{Expected, Identity, Kept, MemDisk, Retention, Wal};
use shardpaxosbank::txn::{Op, Outcome};
use shardpaxosbank::types::{AccountId, NodeId, Transfer};
use shardpaxosbank::workload::SplitMix64;

const TOPOLOGY: Topology =
    Topology { clusters: 2, servers_per_cluster: 3, accounts: 40, initial_balance: 100_000 };
const CLUSTER: u128 = 7;
/// For anything that must happen at last, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(120);

type Running = (Sender<Control>, Arc<Waker>, JoinHandle<std::io::Result<()>>);

struct Server {
    disk: MemDisk,
    running: Option<Running>,
}

struct Bank {
    context: Context,
    clock: Clock,
    servers: BTreeMap<NodeId, Server>,
    /// Starts from a snapshot.
    from_snapshot: u64,
}

/// Snapshots every few hundred transfers, of a piece for every two accounts, so that the power goes in the middle of some.
fn limits() -> Limits {
    Limits { snapshot_bytes: 8 << 10, piece_bytes: 16, digest_slots: 8, ..Limits::default() }
}

impl Bank {
    fn start() -> Bank {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut addresses = BTreeMap::new();
        let mut listeners = BTreeMap::new();
        let mut servers = BTreeMap::new();
        for server in TOPOLOGY.servers() {
            let (listener, address) = listen(any).expect("a port");
            addresses.insert(server, Endpoints::from(Address::from(address)));
            listeners.insert(server, listener);
            let disk = MemDisk::new();
            let incarnation = u128::from(server.0);
            let identity =
                Identity { cluster_id: CLUSTER, topology: TOPOLOGY, server, incarnation, founder: true };
            drop(Wal::format(disk.clone(), identity, 1 << 18).expect("a new disk"));
            servers.insert(server, Server { disk, running: None });
        }
        let context =
            Context { cluster_id: CLUSTER, topology: TOPOLOGY, timeouts: Timeouts::default(), addresses };
        let mut bank = Bank { context, clock: Clock::start(), servers, from_snapshot: 0 };
        listeners.into_iter().for_each(|(server, listener)| bank.launch(server, listener));
        bank
    }

    fn launch(&mut self, id: NodeId, listener: mio::net::TcpListener) {
        let server = self.servers.get_mut(&id).expect("a server");
        let expected = Expected { cluster_id: Some(CLUSTER), topology: TOPOLOGY, server: id };
        let opened = Wal::open(server.disk.clone(), expected).unwrap_or_else(|e| panic!("S1: {id}: {e}"));
        let (mut wal, recovered) = opened;
        assert!(recovered.damaged.is_empty(), "S1: {id}: {:?}", recovered.damaged);
        self.from_snapshot += u64::from(recovered.snapshot.is_some());
        let (control, orders) = unbounded();
        let (poll, waker) = poll_and_waker().expect("an event loop");
        let (context, clock, bounds) = (self.context.clone(), self.clock, (Timeouts::default(), limits()));
        let random = u64::from(id.0);
        let shard = drive::restore(id, TOPOLOGY, bounds, clock.now(), random, &mut wal, recovered);
        let shard = shard.unwrap_or_else(|e| panic!("S1: {id}: {e}"));
        // Log that no restart needs goes, so that none can do without the snapshots.
        let retention = Retention { audit_bytes: 0, audit_age: None };
        let wal = wal.with_retention(retention).expect("a disk that works");
        let status = Arc::new(Mutex::new(Status::new(id)));
        let doors = vec![(listener, Door::Anybody)];
        let setup = Setup {
            context,
            shard,
            wal,
            clock,
            poll,
            waker: waker.clone(),
            doors,
            connections: limits::CONNECTIONS,
            control: orders,
            status,
            admin: false,
        };
        let thread = std::thread::spawn(move || node::run(setup));
        server.running = Some((control, waker, thread));
    }

    /// Takes the power from a server, wherever its thread is; what it had not synced is kept or lost as `rng` says.
    fn cut(&mut self, id: NodeId, rng: &mut SplitMix64) {
        let server = self.servers.get_mut(&id).expect("a server");
        server.disk.crash(|_| match rng.below(3) {
            0 => Kept::Lost,
            1 => Kept::Whole,
            _ => Kept::Sectors(rng.next_u64()),
        });
        let (control, waker, thread) = server.running.take().expect("it runs");
        // It ends by itself at its next write; one that only reads has to be told.
        let _ = control.send(Control::Stop);
        let _ = waker.wake();
        let ended = thread.join().expect("a lost disk is no reason to panic");
        if let Err(e) = ended {
            assert!(e.to_string().contains("before the crash"), "{id}: {e}");
        }
    }

    fn restart(&mut self, id: NodeId) {
        let (listener, _) = listen_at(&self.context.addresses[&id].client).expect("its own port");
        self.launch(id, listener);
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        for (control, waker, thread) in self.servers.values_mut().filter_map(|server| server.running.take()) {
            let _ = control.send(Control::Stop);
            let _ = waker.wake();
            let _ = thread.join();
        }
    }
}

/// What became of the rows that were given out.
#[derive(Default)]
struct Ledger {
    open: BTreeMap<u64, Transfer>,
    unknown: BTreeMap<u64, Transfer>,
    committed: Vec<Transfer>,
    unknown_once: usize,
    batch_done: bool,
}

impl Ledger {
    fn take(&mut self, news: News) {
        match news {
            News::Row { tag, outcome, .. } => {
                let transfer = self.open.remove(&tag).expect("one answer for each row");
                match outcome {
                    Outcome::Committed => self.committed.push(transfer),
                    Outcome::Unknown => {
                        self.unknown.insert(tag, transfer);
                        self.unknown_once += 1;
                    }
                    Outcome::Aborted(_) => {}
                    other => panic!("{other:?} for a transfer"),
                }
            }
            News::Resolved { tag, outcome } => {
                let transfer = self.unknown.remove(&tag).expect("it was unknown");
                if outcome == Outcome::Committed {
                    self.committed.push(transfer);
                }
            }
            News::RowsDone(_) => self.batch_done = true,
            News::TurnedAway(why) => panic!("{why}"),
            News::Op(_) => {}
        }
    }
}

#[test]
fn what_was_answered_survives_the_loss_of_power() {
    let cuts: u64 = std::env::var("POWER_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let mut bank = Bank::start();
    let client = Client::start(bank.context.clone(), Timeouts::default()).expect("a thread");
    let mut rng = SplitMix64::new(cuts);
    let mut ledger = Ledger::default();
    let mut tag = 0;
    for round in 0..cuts {
        let mut rows = Vec::new();
        for _ in 0..400 {
            let (from, to) = (AccountId(1 + rng.below(40)), AccountId(1 + rng.below(40)));
            let transfer = Transfer { from, to, amount: 1 + rng.below(9) as i64 };
            tag += 1;
            ledger.open.insert(tag, transfer);
            let cross = (from.0 <= 20) != (to.0 <= 20);
            rows.push(Row { tag, accounts: vec![from, to], op: Op::Transfer(transfer), cross });
        }
        ledger.batch_done = false;
        client.send(Command::Rows { rows, in_flight: 256, race: true });
        // Somewhere in the middle of it.
        let left = 50 + rng.below(350) as usize;
        while ledger.open.len() > left {
            ledger.take(client.news.recv_timeout(LIMIT).expect("outcomes"));
        }
        let all: Vec<NodeId> = TOPOLOGY.servers().collect();
        let down: Vec<NodeId> = match round % 3 {
            0 => vec![all[rng.below(6) as usize]],
            1 => all.iter().copied().filter(|_| rng.one_in(2)).collect(),
            _ => all,
        };
        down.iter().for_each(|server| bank.cut(*server, &mut rng));
        down.iter().for_each(|server| bank.restart(*server));
        while !ledger.batch_done {
            ledger.take(client.news.recv_timeout(LIMIT).expect("every row has its outcome"));
        }
        assert!(ledger.open.is_empty());
    }
    while !ledger.unknown.is_empty() {
        ledger.take(client.news.recv_timeout(LIMIT).expect("what is unknown is found out"));
    }
    assert!(ledger.committed.len() as u64 > cuts * 20, "{}", ledger.committed.len());

    let mut expected: BTreeMap<u64, i64> = (1..=40).map(|account| (account, 100_000)).collect();
    for Transfer { from, to, amount } in &ledger.committed {
        *expected.get_mut(&from.0).expect("an account") -= amount;
        *expected.get_mut(&to.0).expect("an account") += amount;
    }
    let reads = (1..=40).map(AccountId).map(|account| Row {
        tag: tag + account.0,
        accounts: vec![account],
        op: Op::Read(account),
        cross: false,
    });
    client.send(Command::Rows { rows: reads.collect(), in_flight: 40, race: false });
    let mut held = BTreeMap::new();
    while held.len() < 40 {
        if let News::Row { tag: read, outcome, .. } = client.news.recv_timeout(LIMIT).expect("balances") {
            let Outcome::Balance(balance) = outcome else { panic!("account {}: {outcome:?}", read - tag) };
            held.insert(read - tag, balance as i64);
        }
    }
    assert_eq!(
        held,
        expected,
        "B2, B3: {} committed, {} unknown for a while",
        ledger.committed.len(),
        ledger.unknown_once
    );
    println!(
        "{cuts} cuts: {} committed, {} unknown for a while, {} starts from a snapshot",
        ledger.committed.len(),
        ledger.unknown_once,
        bank.from_snapshot
    );
    assert!(bank.from_snapshot > 0, "no server started from a snapshot");
}
