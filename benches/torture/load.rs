//! Clients that speak RESP, name every transfer, and ask again until they know how it ended.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use shardpaxosbank::config::Topology;
use shardpaxosbank::history::{Call, Operation, Reply};
use shardpaxosbank::types::{AccountId, Reason, Transfer};
use shardpaxosbank::workload::SplitMix64;

use crate::servers::{SERVERS, Servers};

pub const CLIENTS: u32 = 8;
/// Requests that each has under way.
const WINDOW: usize = 24;
/// Transfers in one session.
const SESSION: u64 = 4096;
/// After so long without a reply a client turns to the next server.
const SILENCE: Duration = Duration::from_secs(2);
/// What has no definite reply is asked again after so long.
const BEFORE_AGAIN: Duration = Duration::from_millis(10);
/// After the load has ended, so long for what is still open.
const LAST: Duration = Duration::from_secs(60);

/// What all clients share.
pub struct Shared {
    topology: Topology,
    start: Instant,
    over: AtomicBool,
    /// Microseconds between two requests of one client; 0: as fast as it goes.
    pace_us: AtomicU64,
    /// Transfers told to be committed, for each shard those inside it, and then those across.
    committed: Vec<AtomicU64>,
}

impl Shared {
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    pub fn pace(&self, pause: Duration) {
        self.pace_us.store(pause.as_micros() as u64, Ordering::Relaxed);
    }

    pub fn committed(&self) -> u64 {
        self.committed.iter().map(|n| n.load(Ordering::Relaxed)).sum()
    }

    /// Those inside one shard.
    pub fn committed_in(&self, index: usize) -> u64 {
        self.committed[index].load(Ordering::Relaxed)
    }
}

/// What one client did, and what it has to complain about.
pub struct Story {
    pub operations: Vec<Operation>,
    /// Ids, in the order of `operations`; none of reads.
    pub ids: Vec<Option<String>>,
    pub complaints: Vec<String>,
    /// Requests that were sent more than once.
    pub repeated: u64,
}

pub struct Load {
    pub shared: Arc<Shared>,
    clients: Vec<JoinHandle<Story>>,
}

impl Load {
    pub fn start(topology: Topology, seed: u64) -> Load {
        let committed = (0..=topology.clusters).map(|_| AtomicU64::new(0)).collect();
        let (over, pace_us) = (AtomicBool::new(false), AtomicU64::new(0));
        let shared = Arc::new(Shared { topology, start: Instant::now(), over, pace_us, committed });
        let client = |number| {
            let client = Client {
                number,
                shared: shared.clone(),
                rng: SplitMix64::new(seed ^ u64::from(number) << 32),
                server: number as u16 % SERVERS,
                session: None,
                open: VecDeque::new(),
                story: Story { operations: vec![], ids: vec![], complaints: vec![], repeated: 0 },
                next_at: Instant::now(),
                unsettled: false,
            };
            thread::spawn(move || client.live())
        };
        Load { clients: (0..CLIENTS).map(client).collect(), shared: shared.clone() }
    }

    /// No new requests; waits for the replies to those that there are.
    pub fn end(self) -> Vec<Story> {
        self.shared.over.store(true, Ordering::Relaxed);
        self.clients.into_iter().map(|client| client.join().expect("no client panics")).collect()
    }
}

/// Any account of the shard that holds this one.
pub fn of_same_shard(topology: &Topology, rng: &mut SplitMix64, account: u64) -> u64 {
    let shard = topology.shard_of(AccountId(account)).expect("an account of this bank");
    let accounts = topology.accounts_of(shard);
    accounts.start() + rng.below(accounts.end() + 1 - accounts.start())
}

struct Client {
    number: u32,
    shared: Arc<Shared>,
    rng: SplitMix64,
    server: u16,
    /// The session and the next sequence in it.
    session: Option<(String, u64)>,
    /// Operations without a definite reply, in the order in which they were sent on this connection.
    open: VecDeque<usize>,
    story: Story,
    next_at: Instant,
    /// Something has to be asked again that had no definite reply.
    unsettled: bool,
}

impl Client {
    fn live(mut self) -> Story {
        let mut end = None;
        loop {
            self.server = self.server % SERVERS + 1;
            let served = self.serve_at(&Servers::client_address(self.server));
            let over = self.shared.over.load(Ordering::Relaxed);
            let late = over && Instant::now() > *end.get_or_insert_with(|| Instant::now() + LAST);
            if served.is_ok() || late {
                return self.story;
            }
        }
    }

    /// Uses one connection until all is done; an error is its end, and the next server goes on.
    fn serve_at(&mut self, address: &str) -> std::io::Result<()> {
        let address = address.parse().expect("an address");
        let stream = TcpStream::connect_timeout(&address, SILENCE / 4)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let mut stream = BufReader::new(stream);
        // Whoever asks again must not turn it into another request: it keeps its id.
        let mut batch = String::new();
        for &index in &self.open {
            batch.push_str(&self.request(index));
        }
        self.story.repeated += self.open.len() as u64;
        loop {
            let over = self.shared.over.load(Ordering::Relaxed);
            if over && self.open.is_empty() {
                return Ok(());
            }
            if !over {
                let spent = self.session.as_ref().is_none_or(|(_, next)| *next > SESSION);
                if spent && self.open.is_empty() {
                    self.session = Some((self.open_session(&mut stream)?, 1));
                } else if !spent {
                    self.invoke_some(&mut batch);
                }
            }
            if std::mem::take(&mut self.unsettled) {
                crate::pause(BEFORE_AGAIN);
            }
            stream.get_mut().write_all(batch.as_bytes())?;
            batch.clear();
            if self.open.is_empty() {
                crate::pause(Duration::from_millis(1));
                continue;
            }
            let mut line = String::new();
            // What is behind the first reply and has arrived is taken in the same go.
            loop {
                line.clear();
                if stream.read_line(&mut line)? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                self.take(line.trim_end(), &mut batch);
                if self.open.is_empty() || !stream.buffer().contains(&b'\n') {
                    break;
                }
            }
        }
    }

    fn open_session(&mut self, stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
        stream.get_mut().write_all(b"SESSION\r\n")?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if !line.starts_with('$') {
            crate::pause(Duration::from_millis(20));
            return Err(std::io::Error::other(line));
        }
        line.clear();
        stream.read_line(&mut line)?;
        Ok(line.trim_end().into())
    }

    fn invoke_some(&mut self, batch: &mut String) {
        let pace = Duration::from_micros(self.shared.pace_us.load(Ordering::Relaxed));
        let now = Instant::now();
        // What was missed is not made up for.
        self.next_at = self.next_at.max(now.checked_sub(pace * 8).unwrap_or(now));
        while self.open.len() < WINDOW && self.next_at <= now {
            self.next_at += pace;
            let call = self.call();
            let id = match (&call, &mut self.session) {
                (Call::Read(_), _) => None,
                (_, Some((_, next))) if *next > SESSION => return,
                (_, Some((session, next))) => {
                    *next += 1;
                    Some(format!("{session}:{}", *next - 1))
                }
                (_, None) => return,
            };
            let (client, invoked) = (self.number, self.shared.now());
            self.story.operations.push(Operation { client, call, invoked, replied: None });
            self.story.ids.push(id);
            let index = self.story.operations.len() - 1;
            self.open.push_back(index);
            batch.push_str(&self.request(index));
            if pace.is_zero() && batch.len() > 4096 {
                return;
            }
        }
    }

    /// Accounts of all shards, some of them far more often than others.
    fn call(&mut self) -> Call {
        let topology = &self.shared.topology;
        let accounts = topology.accounts;
        let rng = &mut self.rng;
        let hot = rng.one_in(20);
        let mut account = |near: Option<u64>| {
            if hot {
                return 1 + rng.below(3) * (accounts / 3) + rng.below(2);
            }
            match near {
                // In the same shard, mostly.
                Some(other) if !rng.one_in(4) => of_same_shard(topology, rng, other),
                _ => 1 + rng.below(accounts),
            }
        };
        let from = account(None);
        let to = account(Some(from));
        if rng.one_in(10) {
            return Call::Read(AccountId(from));
        }
        let to = if to == from { from % accounts + 1 } else { to };
        Call::Transfer(Transfer { from: AccountId(from), to: AccountId(to), amount: 1 + rng.below(9) as i64 })
    }

    fn request(&self, index: usize) -> String {
        match (self.story.operations[index].call, &self.story.ids[index]) {
            (Call::Transfer(t), Some(id)) => {
                format!("TRANSFER {} {} {} ID {id}\r\n", t.from.0, t.to.0, t.amount)
            }
            (Call::Read(account), _) => format!("BALANCE {}\r\n", account.0),
            (Call::Transfer(_), None) => unreachable!("every transfer has an id"),
        }
    }

    /// The reply to the oldest request on this connection.
    fn take(&mut self, line: &str, batch: &mut String) {
        let index = self.open.pop_front().expect("a reply to something");
        let call = self.story.operations[index].call;
        let code = line.split(' ').next().unwrap_or_default();
        let aborted = |reason| Some(Reply::Aborted(reason));
        let reply = match (call, code) {
            (Call::Transfer(transfer), "+OK") => {
                self.count(&transfer);
                Some(Reply::Committed)
            }
            (Call::Transfer(_), "-INSUFFICIENT") => aborted(Reason::InsufficientBalance),
            (Call::Transfer(_), "-LOCKED") => aborted(Reason::LockContention),
            (Call::Transfer(_), "-NOQUORUM") => aborted(Reason::NoQuorum),
            (Call::Transfer(_), "-STORAGEFULL") => aborted(Reason::StorageFull),
            (Call::Read(_), balance) if balance.starts_with(':') => {
                balance[1..].parse().ok().map(Reply::Balance)
            }
            // A read that was refused says nothing.
            (Call::Read(_), "-LOCKED" | "-NOQUORUM" | "-BUSY") => return,
            (Call::Transfer(_), "-UNKNOWN" | "-BUSY") => {
                self.story.repeated += 1;
                batch.push_str(&self.request(index));
                self.open.push_back(index);
                self.unsettled = true;
                return;
            }
            _ => None,
        };
        match reply {
            Some(reply) => self.story.operations[index].replied = Some((self.shared.now(), reply)),
            None => self.story.complaints.push(format!("{call:?} was answered {line:?}")),
        }
    }

    fn count(&self, transfer: &Transfer) {
        let shard = |account| self.shared.topology.shard_of(account).map(|shard| shard.index());
        let (from, to) = (shard(transfer.from), shard(transfer.to));
        let across = usize::from(self.shared.topology.clusters);
        let place = from.filter(|_| from == to).unwrap_or(across);
        self.shared.committed[place].fetch_add(1, Ordering::Relaxed);
    }
}
