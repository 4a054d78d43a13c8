//! Full disks under real servers: threads, sockets and files, with a disk between the log and its directory that gives no
//! space when it is told so. (A small tmpfs would need root.)

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel::{Sender, bounded, unbounded};
use mio::Waker;
use parking_lot::Mutex;
use shardpaxosbank::config::{Timeouts, Topology};
use shardpaxosbank::net::{Address, listen};
use shardpaxosbank::runtime::client::{Client, Command, News, Row};
use shardpaxosbank::runtime::clock::Clock;
use shardpaxosbank::runtime::cluster::{Threading, prepare};
use shardpaxosbank::runtime::conns::{Context, Door};
use shardpaxosbank::runtime::node::{self, Control, poll_and_waker};
use shardpaxosbank::runtime::order::{Order, Report};
use shardpaxosbank::runtime::status::Status;
use shardpaxosbank::storage::{Disk, DiskFile, Expected, FileDisk, Identity, RealFile, Wal};
use shardpaxosbank::txn::{Op, Outcome};
use shardpaxosbank::types::{AccountId, NodeId, Reason, Transfer};
use tempfile::TempDir;

use crate::common::{LIMIT, temp};

/// Twice the reserve: new work ends when the first half is used.
const SEGMENT: u64 = 2 << 20;
/// More than it takes to come there.
const ROWS: u64 = 60_000;
const ACCOUNTS: u64 = 1000;

/// A directory on a disk that can be full.
#[derive(Clone)]
struct Bounded {
    inner: FileDisk,
    full: Arc<AtomicBool>,
}

struct BoundedFile {
    inner: RealFile,
    full: Arc<AtomicBool>,
}

impl Bounded {
    fn file(&self, inner: RealFile) -> BoundedFile {
        BoundedFile { inner, full: self.full.clone() }
    }
}

impl Disk for Bounded {
    type File = BoundedFile;

    fn create(&self, name: &str) -> io::Result<BoundedFile> {
        Ok(self.file(self.inner.create(name)?))
    }

    fn open(&self, name: &str) -> io::Result<BoundedFile> {
        Ok(self.file(self.inner.open(name)?))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.inner.list()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.inner.sync_dir()
    }
}

impl DiskFile for BoundedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)
    }

    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        if self.full.load(Ordering::Relaxed) && offset + buf.len() as u64 > self.inner.len()? {
            // ENOSPC, as the operating system says it.
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.inner.write_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.inner.sync_data()
    }
}

struct Server {
    full: Arc<AtomicBool>,
    control: Sender<Control>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// One cluster of three, and a client. They end with it.
struct Bank {
    servers: BTreeMap<NodeId, Server>,
    client: Client,
    next_tag: u64,
    _dir: TempDir,
}

impl Bank {
    fn start() -> Bank {
        let topology =
            Topology { clusters: 1, servers_per_cluster: 3, accounts: ACCOUNTS, initial_balance: 1_000_000 };
        let (dir, clock, timeouts) = (temp(), Clock::start(), Timeouts::default());
        let listeners: BTreeMap<NodeId, _> = topology
            .servers()
            .map(|id| (id, listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port")))
            .collect();
        let addresses = listeners.iter().map(|(id, (_, address))| (*id, Address::from(*address).into()));
        let context = Context { cluster_id: 1, topology, timeouts, addresses: addresses.collect() };
        let mut servers = BTreeMap::new();
        for (id, (listener, _)) in listeners {
            let full = Arc::new(AtomicBool::new(false));
            let inner = FileDisk::open(dir.path().join(id.to_string())).expect("a directory");
            let disk = Bounded { inner, full: full.clone() };
            let identity = Identity {
                cluster_id: 1,
                topology,
                server: id,
                incarnation: u128::from(id.0),
                founder: true,
            };
            drop(Wal::format(disk.clone(), identity, SEGMENT).expect("format"));
            let expected = Expected { cluster_id: Some(1), topology, server: id };
            let log = Wal::open(disk, expected).expect("open");
            let (poll, waker) = poll_and_waker().expect("a poll");
            let (control, orders) = unbounded();
            let status = Arc::new(Mutex::new(Status::new(id)));
            let doors = vec![(listener, Door::Anybody)];
            let waking = waker.clone();
            let around = Threading { poll, waker: waking, doors, control: orders, status, admin: false };
            let setup = prepare(id, context.clone(), timeouts.into(), clock, log, around).expect("restore");
            let thread = Some(std::thread::spawn(move || node::run(setup)));
            servers.insert(id, Server { full, control, waker, thread });
        }
        let client = Client::start(context, timeouts).expect("a coordinator");
        Bank { servers, client, next_tag: 1, _dir: dir }
    }

    fn fill(&self, full: bool, which: impl Fn(NodeId) -> bool) {
        for (_, server) in self.servers.iter().filter(|(id, _)| which(**id)) {
            server.full.store(full, Ordering::Relaxed);
        }
    }

    /// Runs these and returns their outcomes, in order.
    fn run(&mut self, ops: Vec<Op>) -> Vec<Outcome> {
        let (first, count) = (self.next_tag, ops.len());
        self.next_tag += count as u64;
        let accounts = |op: &Op| match op {
            Op::Transfer(t) => vec![t.from, t.to],
            Op::Read(account) => vec![*account],
            _ => vec![],
        };
        let rows = (first..).zip(ops).map(|(tag, op)| Row { tag, accounts: accounts(&op), op, cross: false });
        self.client.send(Command::Rows { rows: rows.collect(), in_flight: 8192, race: false });
        let mut outcomes = vec![Outcome::Unknown; count];
        loop {
            match self.client.news.recv_timeout(LIMIT).expect("news") {
                News::Row { tag, outcome, .. } => outcomes[(tag - first) as usize] = outcome,
                News::RowsDone(_) => return outcomes,
                _ => {}
            }
        }
    }

    fn transfers(&mut self, count: u64) -> Vec<Outcome> {
        let transfer = |i: u64| {
            let (from, to) = (i * 7 % ACCOUNTS + 1, (i * 7 + 1) % ACCOUNTS + 1);
            Op::Transfer(Transfer { from: AccountId(from), to: AccountId(to), amount: 1 })
        };
        self.run((0..count).map(transfer).collect())
    }

    fn ask(&self, server: NodeId, order: Order) -> Report {
        let (reply, report) = bounded(1);
        let server = &self.servers[&server];
        server.control.send(Control::Order(order, reply)).expect("it runs");
        server.waker.wake().expect("it can be woken");
        report.recv_timeout(LIMIT).expect("it answers")
    }

    fn status(&self, server: u16) -> Status {
        let Report::Status(status) = self.ask(NodeId(server), Order::Status) else { panic!("no status") };
        assert_eq!(status.stopped, None);
        *status
    }

    /// Space is there again: until a transfer commits, others find none.
    fn recovers(&mut self) {
        let begun = Instant::now();
        while self.transfers(1) != [Outcome::Committed] {
            assert!(begun.elapsed() < LIMIT, "it does not recover");
        }
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        for server in self.servers.values_mut() {
            let _ = server.control.send(Control::Stop);
            let _ = server.waker.wake();
            let ended = server.thread.take().map(JoinHandle::join);
            if !std::thread::panicking() {
                assert!(matches!(ended, Some(Ok(Ok(())))), "a server stopped by itself: {ended:?}");
            }
        }
    }
}

const FULL: Outcome = Outcome::Aborted(Reason::StorageFull);

#[test]
fn full_disks_refuse_new_work_and_nothing_else() {
    let mut bank = Bank::start();
    bank.recovers();
    bank.fill(true, |_| true);
    let outcomes = bank.transfers(ROWS);
    let refused = outcomes.iter().filter(|o| **o == FULL).count();
    let committed = outcomes.iter().filter(|o| **o == Outcome::Committed).count();
    assert!(refused > 0 && committed > 0, "{refused} refused, {committed} committed");
    assert_eq!(refused + committed, outcomes.len(), "nothing else");
    assert!((1..=3).any(|id| bank.status(id).room.is_some()));
    // What was refused has no effect, what was committed has its own, and reads go on.
    let reads = bank.run((1..=ACCOUNTS).map(|a| Op::Read(AccountId(a))).collect());
    let mut balances = vec![1_000_000; ACCOUNTS as usize];
    for (i, outcome) in (0..).zip(&outcomes).chain([(0, &Outcome::Committed)]) {
        if *outcome == Outcome::Committed {
            balances[(i * 7 % ACCOUNTS) as usize] -= 1;
            balances[((i * 7 + 1) % ACCOUNTS) as usize] += 1;
        }
    }
    assert_eq!(reads, balances.into_iter().map(Outcome::Balance).collect::<Vec<_>>());
    assert_eq!(bank.transfers(3), [FULL, FULL, FULL]);
    bank.fill(false, |_| true);
    bank.recovers();
}

/// One full disk in three, that of the leader: another server takes the lead, and the full one catches up later.
#[test]
fn one_full_disk_stops_nothing() {
    let mut bank = Bank::start();
    bank.recovers();
    let leads = |bank: &Bank, id: u16| bank.status(id).role == shardpaxosbank::report::Role::Leader;
    let leader = (1..=3).find(|id| leads(&bank, *id)).expect("it answered");
    bank.fill(true, |id| id.0 == leader);
    let outcomes = bank.transfers(2 * ROWS);
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Committed));
    assert!(!leads(&bank, leader) && bank.status(leader).room.is_some());
    let decided = (1..=3).map(|id| bank.status(id).decided).max().expect("three");
    let report = bank.ask(NodeId(leader), Order::AwaitApplied(decided));
    assert!(matches!(report, Report::Behind { .. }), "{report:?}");
    bank.fill(false, |_| true);
    let begun = Instant::now();
    while !matches!(bank.ask(NodeId(leader), Order::AwaitApplied(decided)), Report::Done) {
        assert!(begun.elapsed() < LIMIT, "it does not catch up");
    }
    assert_eq!(bank.status(leader).room, None);
}
