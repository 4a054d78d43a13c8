//! The floor: what the pattern of the bank's work costs on this machine without any of its protocol.
//!
//! A client sends frames of transfers to a leader. The leader passes what came in a turn on to its followers, each of the
//! servers appends it to a zero-filled file and syncs that, followers say how many bytes they have so far, and what a majority
//! has is applied to an array of balances and answered. One thread and one mio loop for each server and one for all clients,
//! 24 bytes for a transfer. No ballots, no slots, no checksums, no sessions, no recovery: nothing here could lose its leader.
//! A system that keeps its promises cannot be faster than that by doing less; how far it is from it is its own doing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use crate::metrics::Latencies;
use crate::runtime::cores;
use crate::workload::SplitMix64;

/// Bytes of a transfer: two accounts and an amount.
const RECORD: usize = 24;
/// Bytes in front of a frame: its length.
const PREFIX: usize = 4;
/// Bytes of an answer to a frame.
const ANSWER: usize = 4;
/// A server writes its file from the beginning again when it comes to the end.
const FILE_BYTES: u64 = 64 << 20;
/// Bytes that are taken from one connection before the others have their turn.
const READ_BUDGET: usize = 256 * 1024;
const INITIAL: u64 = 1 << 40;

/// What is sent: the same as a bank is driven with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pattern {
    pub followers: usize,
    pub accounts: u64,
    /// Connections of clients.
    pub connections: usize,
    /// Transfers in a frame.
    pub batch: usize,
    /// Frames under way on each connection.
    pub in_flight: usize,
    /// Whether each server keeps to one core.
    pub pinned: bool,
}

/// What came of it.
#[derive(Clone, Default, Debug)]
pub struct Floor {
    pub transfers: u64,
    pub span: Duration,
    /// Of frames, from sending to the answer.
    pub latency: Latencies,
}

impl Floor {
    /// Transfers in a second.
    pub fn rate(&self) -> f64 {
        self.transfers as f64 / self.span.as_secs_f64().max(1e-9)
    }
}

/// Runs the pattern for so long, after a tenth of it that does not count. The files lie in `dir` and are removed with it.
///
/// # Errors
///
/// A file or a socket of this machine cannot be had, or broke.
pub fn measure(pattern: Pattern, span: Duration, dir: &Path) -> io::Result<Floor> {
    let over = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    let mut followers = Vec::new();
    for n in 0..pattern.followers {
        let listener = TcpListener::bind(local())?;
        followers.push(listener.local_addr()?);
        let (journal, over) = (Journal::create(&dir.join(format!("follower-{n}")))?, over.clone());
        let turn = pattern.pinned.then_some(n + 1);
        threads.push(cores::spawn("follower", turn, move || {
            follow(listener, journal, pattern.accounts, &over)
        })?);
    }
    let listener = TcpListener::bind(local())?;
    let address = listener.local_addr()?;
    let (journal, stop) = (Journal::create(&dir.join("leader"))?, over.clone());
    let turn = pattern.pinned.then_some(0);
    threads.push(cores::spawn("leader", turn, move || {
        lead(listener, &followers, journal, pattern.accounts, &stop)
    })?);
    let measured = drive(address, pattern, span);
    over.store(true, Ordering::Relaxed);
    for thread in threads {
        let ended = thread.join().map_err(|_| io::Error::other("a thread of the floor has panicked"))?;
        ended.transpose()?;
    }
    measured
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// How long a loop sleeps before it looks whether all is over.
const GLANCE: Duration = Duration::from_millis(100);

fn wait(poll: &mut Poll, events: &mut Events, patience: Duration) -> io::Result<()> {
    match poll.poll(events, Some(patience)) {
        Err(e) if e.kind() != ErrorKind::Interrupted => Err(e),
        _ => Ok(()),
    }
}

/// A zero-filled file that is written to in turns.
struct Journal {
    file: File,
    at: u64,
}

impl Journal {
    fn create(path: &Path) -> io::Result<Journal> {
        let file = File::create_new(path)?;
        let zeros = vec![0; 1 << 20];
        for at in (0..FILE_BYTES).step_by(zeros.len()) {
            file.write_all_at(&zeros, at)?;
        }
        file.sync_all()?;
        Ok(Journal { file, at: 0 })
    }

    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min((FILE_BYTES - self.at) as usize));
            self.file.write_all_at(part, self.at)?;
            self.at = (self.at + part.len() as u64) % FILE_BYTES;
            bytes = rest;
        }
        self.file.sync_data()
    }
}

/// A connection with what is still to be written on it.
struct Pipe {
    stream: TcpStream,
    out: Vec<u8>,
    written: usize,
}

impl Pipe {
    fn new(stream: TcpStream, poll: &Poll, token: Token) -> io::Result<Pipe> {
        let mut stream = stream;
        stream.set_nodelay(true)?;
        poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Pipe { stream, out: Vec::new(), written: 0 })
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(count) => self.written += count,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(());
                }
                // It goes when it has measured enough; whoever reads on finds the end.
                Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => break,
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        self.written = 0;
        Ok(())
    }

    /// Appends what has arrived; `false` when the other end has gone, and whether there may be more.
    fn fill(&mut self, into: &mut Vec<u8>) -> io::Result<(bool, bool)> {
        let start = into.len();
        while into.len() - start < READ_BUDGET {
            into.reserve(READ_BUDGET / 4);
            let room = into.capacity() - into.len();
            match rustix::io::read(&self.stream, spare_capacity(into)) {
                Ok(0) => return Ok((false, false)),
                // Nothing is left, as for the bank. Who misses the end that way is stopped with all others.
                Ok(count) if count < room => return Ok((true, false)),
                Ok(_) => {}
                Err(Errno::WOULDBLOCK | Errno::NOTCONN) => return Ok((true, false)),
                Err(Errno::CONNRESET) => return Ok((false, false)),
                Err(e) => return Err(e.into()),
            }
        }
        Ok((true, true))
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("as many bytes as were asked for")
}

/// The length of the first frame, with its prefix, if it is whole.
fn whole_frame(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < PREFIX {
        return None;
    }
    let length = PREFIX + u32::from_le_bytes(field(bytes, 0)) as usize;
    (bytes.len() >= length).then_some(length)
}

/// Carries out the transfers of whole frames.
fn apply(balances: &mut [u64], mut frames: &[u8]) {
    while let Some(length) = whole_frame(frames) {
        for record in frames[PREFIX..length].chunks_exact(RECORD) {
            let [from, to, amount] = [0, 8, 16].map(|at| u64::from_le_bytes(field(record, at)));
            let (from, to) = (from as usize, to as usize);
            if balances[from] >= amount {
                balances[from] -= amount;
                balances[to] += amount;
            }
        }
        frames = &frames[length..];
    }
}

/// Writes down what comes, and says how much it has.
fn follow(listener: TcpListener, mut journal: Journal, accounts: u64, over: &AtomicBool) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(16);
    let mut listener = listener;
    poll.registry().register(&mut listener, Token(0), Interest::READABLE)?;
    let mut balances = vec![INITIAL; accounts as usize];
    let mut leader: Option<Pipe> = None;
    let (mut bytes, mut total, mut more) = (Vec::new(), 0_u64, false);
    while !over.load(Ordering::Relaxed) {
        wait(&mut poll, &mut events, if more { Duration::ZERO } else { GLANCE })?;
        if leader.is_none()
            && let Ok((stream, _)) = listener.accept()
        {
            leader = Some(Pipe::new(stream, &poll, Token(1))?);
        }
        let Some(pipe) = &mut leader else { continue };
        let before = bytes.len();
        let (there, again) = pipe.fill(&mut bytes)?;
        more = again;
        if !there {
            return Ok(());
        }
        if bytes.len() > before {
            journal.append(&bytes[before..])?;
            total += (bytes.len() - before) as u64;
            pipe.out.extend_from_slice(&total.to_le_bytes());
        }
        pipe.flush()?;
        let mut whole = 0;
        while let Some(length) = whole_frame(&bytes[whole..]) {
            whole += length;
        }
        apply(&mut balances, &bytes[..whole]);
        bytes.drain(..whole);
    }
    Ok(())
}

/// What came in one turn of the leader, and from whom.
struct Turn {
    end: u64,
    frames: Vec<u8>,
    from: Vec<usize>,
}

fn lead(
    listener: TcpListener,
    addresses: &[SocketAddr],
    mut journal: Journal,
    accounts: u64,
    over: &AtomicBool,
) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    let mut listener = listener;
    poll.registry().register(&mut listener, Token(0), Interest::READABLE)?;
    let mut followers = Vec::new();
    for (n, address) in addresses.iter().enumerate() {
        // The system accepts for them; nothing is sent before the first client has come.
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        followers.push((Pipe::new(TcpStream::from_std(stream), &poll, Token(1 + n))?, Vec::new(), 0_u64));
    }
    let first_client = 1 + followers.len();
    let mut clients: Vec<(Pipe, Vec<u8>)> = Vec::new();
    let mut balances = vec![INITIAL; accounts as usize];
    let mut turns: VecDeque<Turn> = VecDeque::new();
    let mut spare: Vec<Vec<u8>> = Vec::new();
    let (mut total, mut more) = (0_u64, Vec::new());
    let mut heard = vec![false; followers.len()];
    let majority = followers.len().div_ceil(2);
    while !over.load(Ordering::Relaxed) {
        let idle = more.is_empty() && !heard.contains(&true);
        wait(&mut poll, &mut events, if idle { GLANCE } else { Duration::ZERO })?;
        let mut ready = std::mem::take(&mut more);
        for event in &events {
            match event.token() {
                Token(0) => {
                    while let Ok((stream, _)) = listener.accept() {
                        let n = clients.len();
                        clients.push((Pipe::new(stream, &poll, Token(first_client + n))?, Vec::new()));
                        ready.push(n);
                    }
                }
                Token(n) if n >= first_client => ready.push(n - first_client),
                Token(n) => heard[n - 1] = true,
            }
        }
        let mut turn = Turn { end: 0, frames: spare.pop().unwrap_or_default(), from: Vec::new() };
        for n in ready {
            let (pipe, bytes) = &mut clients[n];
            let (_, again) = pipe.fill(bytes)?;
            pipe.flush()?;
            if again {
                more.push(n);
            }
            let mut whole = 0;
            while let Some(length) = whole_frame(&bytes[whole..]) {
                whole += length;
                turn.from.push(n);
            }
            turn.frames.extend_from_slice(&bytes[..whole]);
            bytes.drain(..whole);
        }
        if !turn.frames.is_empty() {
            total += turn.frames.len() as u64;
            turn.end = total;
            for (pipe, ..) in &mut followers {
                pipe.out.extend_from_slice(&turn.frames);
                pipe.flush()?;
            }
            journal.append(&turn.frames)?;
            turns.push_back(turn);
        }
        for ((pipe, bytes, acknowledged), heard) in followers.iter_mut().zip(&mut heard) {
            pipe.flush()?;
            if std::mem::take(heard) {
                (_, *heard) = pipe.fill(bytes)?;
            }
            let whole = bytes.len() / 8 * 8;
            if whole > 0 {
                *acknowledged = u64::from_le_bytes(field(bytes, whole - 8));
                bytes.drain(..whole);
            }
        }
        // Its own file has everything, so that many followers make a majority with it.
        let mut acknowledged: Vec<u64> = followers.iter().map(|(_, _, position)| *position).collect();
        acknowledged.sort_unstable_by(|a, b| b.cmp(a));
        let decided = if majority == 0 { total } else { acknowledged[majority - 1] };
        let mut answered = Vec::new();
        while turns.front().is_some_and(|turn| turn.end <= decided)
            && let Some(mut turn) = turns.pop_front()
        {
            apply(&mut balances, &turn.frames);
            for n in turn.from {
                clients[n].0.out.extend_from_slice(&[0; ANSWER]);
                answered.push(n);
            }
            turn.frames.clear();
            spare.push(turn.frames);
        }
        for n in answered {
            clients[n].0.flush()?;
        }
    }
    Ok(())
}

fn drive(address: SocketAddr, pattern: Pattern, span: Duration) -> io::Result<Floor> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    let mut rng = SplitMix64::new(1);
    let frame = |rng: &mut SplitMix64| {
        let mut bytes = ((pattern.batch * RECORD) as u32).to_le_bytes().to_vec();
        for _ in 0..pattern.batch {
            for field in [rng.below(pattern.accounts), rng.below(pattern.accounts), 1 + rng.below(9)] {
                bytes.extend_from_slice(&field.to_le_bytes());
            }
        }
        bytes
    };
    let frames: Vec<Vec<u8>> = (0..16).map(|_| frame(&mut rng)).collect();
    let mut next = 0;
    let mut clients = Vec::new();
    for n in 0..pattern.connections {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        clients.push((Pipe::new(TcpStream::from_std(stream), &poll, Token(n))?, VecDeque::new(), Vec::new()));
    }
    let begun = Instant::now();
    let warm = begun + span / 10;
    let end = warm + span;
    let mut floor = Floor { span, ..Floor::default() };
    let mut ready: Vec<usize> = (0..clients.len()).collect();
    loop {
        for n in ready.drain(..) {
            let (pipe, sent, bytes) = &mut clients[n];
            let (there, _) = pipe.fill(bytes)?;
            if !there {
                return Err(io::Error::other("the leader of the floor has closed a connection"));
            }
            let (now, answers) = (Instant::now(), bytes.len() / ANSWER);
            bytes.drain(..answers * ANSWER);
            for at in sent.drain(..answers) {
                if now >= warm && now < end {
                    floor.transfers += pattern.batch as u64;
                    floor.latency.record(now - at);
                }
            }
            while sent.len() < pattern.in_flight {
                pipe.out.extend_from_slice(&frames[next % frames.len()]);
                next += 1;
                sent.push_back(Instant::now());
            }
            pipe.flush()?;
        }
        if Instant::now() >= end {
            return Ok(floor);
        }
        wait(&mut poll, &mut events, GLANCE)?;
        ready.extend(events.iter().map(|event| event.token().0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_moves_what_is_there_and_answers_every_frame() {
        for pinned in [false, true] {
            let dir = tempfile::tempdir().expect("a directory");
            let pattern =
                Pattern { followers: 2, accounts: 10, connections: 3, batch: 2, in_flight: 2, pinned };
            let floor = measure(pattern, Duration::from_millis(300), dir.path()).expect("a floor");
            assert!(floor.transfers > 0 && floor.transfers.is_multiple_of(2));
            assert_eq!(floor.latency.summary().count, floor.transfers / 2);
        }
        let mut balances = [5, 0];
        let record = |from: u64, to: u64, amount: u64| [from, to, amount].map(u64::to_le_bytes).concat();
        let frame = [&48_u32.to_le_bytes()[..], &record(0, 1, 3), &record(0, 1, 3)].concat();
        apply(&mut balances, &frame);
        assert_eq!(balances, [2, 3]);
    }
}
