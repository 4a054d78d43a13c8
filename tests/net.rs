//! The network layer: frames under any chunking and damage, connections on real loopback sockets.
//!
//! No test sleeps: sockets are driven by a poll until a condition holds, with a generous limit.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use proptest::prelude::*;
use shardpaxosbank::net::frame::{HEADER_BYTES, READ_BYTES};
use shardpaxosbank::net::{
    Accepted, Connection, FrameError, FrameReader, Limits, ReadStatus, SpareFd, accept, encode, listen,
};

const PATIENCE: Duration = Duration::from_secs(30);
const LIMITS: Limits = Limits { frame_bytes: 8 << 20, send_bytes: 1 << 20 };

type Sent = Vec<(u8, Vec<u8>)>;

// ---- Frames --------------------------------------------------------------------------------------------------------

fn encoded(frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, payload) in frames {
        encode(*kind, &mut out, |out| out.extend_from_slice(payload));
    }
    out
}

/// Copies as much of `bytes` into the reader as it has room for; returns how much that was.
fn feed(reader: &mut FrameReader, bytes: &[u8], limit: usize) -> usize {
    let room = reader.space(limit);
    let count = room.len().min(bytes.len());
    room[..count].copy_from_slice(&bytes[..count]);
    reader.filled(count);
    count
}

/// Everything that comes out of a stream cut into chunks of the given sizes, and the error that ended it.
fn read_all(stream: &[u8], chunks: &[usize], limit: usize) -> (Sent, Option<FrameError>) {
    let mut reader = FrameReader::new();
    let mut got = Vec::new();
    let mut rest = stream;
    let mut sizes = chunks.iter().copied().chain(std::iter::repeat(stream.len()));
    while !rest.is_empty() {
        let size = sizes.next().expect("endless").clamp(1, rest.len());
        let count = feed(&mut reader, &rest[..size], limit);
        assert!(count > 0, "a drained reader has room");
        rest = &rest[count..];
        loop {
            match reader.next_frame(limit) {
                Ok(Some(frame)) => got.push((frame.kind, frame.payload.to_vec())),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(reader.next_frame(limit), Err(error), "an error is final");
                    return (got, Some(error));
                }
            }
        }
        assert!(reader.capacity() <= limit + HEADER_BYTES + READ_BYTES);
    }
    (got, None)
}

fn frames() -> impl Strategy<Value = Sent> {
    let payload = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..50),
        1 => (any::<u8>(), 0..200_000usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    prop::collection::vec((any::<u8>(), payload), 0..8)
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_chunking_gives_the_same_frames(
        sent in frames(),
        chunks in prop::collection::vec(prop_oneof![1..12usize, 1..100_000usize], 0..60),
    ) {
        prop_assert_eq!(read_all(&encoded(&sent), &chunks, LIMITS.frame_bytes), (sent, None));
    }

    /// Nothing that was not sent comes out. A flip in a length may leave the reader waiting for the rest.
    #[test]
    fn a_flipped_bit_is_never_taken_for_a_frame(
        sent in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 1..6),
        place in any::<prop::sample::Index>(),
        bit in 0..8u32,
    ) {
        let mut stream = encoded(&sent);
        let place = place.index(stream.len());
        stream[place] ^= 1 << bit;
        let mut end = 0;
        let hit = sent.iter().position(|(_, payload)| {
            end += HEADER_BYTES + 1 + payload.len();
            place < end
        });
        let (got, error) = read_all(&stream, &[], 1000);
        prop_assert_eq!(&got[..], &sent[..hit.expect("inside a frame")]);
        let body_hit = place >= end - 1 - sent[got.len()].1.len();
        prop_assert!(!body_hit || error == Some(FrameError::Checksum));
    }

    #[test]
    fn garbage_is_refused_without_panic_or_much_memory(
        garbage in prop::collection::vec(any::<u8>(), 0..3000),
        chunks in prop::collection::vec(1..500usize, 0..10),
        limit in 1..2000usize,
    ) {
        let (got, _) = read_all(&garbage, &chunks, limit);
        prop_assert!(got.is_empty());
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_allocated(
        limit in 1..100_000u32, beyond in 1..=u32::MAX - 100_000,
    ) {
        let len = limit + beyond;
        let mut reader = FrameReader::new();
        feed(&mut reader, &len.to_le_bytes(), limit as usize);
        let before = reader.capacity();
        let expected = FrameError::TooLarge { len: len as usize, limit: limit as usize };
        prop_assert_eq!(reader.next_frame(limit as usize), Err(expected));
        prop_assert_eq!(reader.capacity(), before);
    }
}

#[test]
fn the_limit_is_exact_and_an_empty_frame_is_an_error() {
    let stream = encoded(&[(7, vec![1; 99])]);
    assert_eq!(read_all(&stream, &[], 100).0, [(7, vec![1; 99])]);
    assert_eq!(read_all(&stream, &[], 99).1, Some(FrameError::TooLarge { len: 100, limit: 99 }));
    assert_eq!(read_all(&[0; HEADER_BYTES], &[], 100).1, Some(FrameError::Empty));
}

#[test]
fn an_announced_frame_takes_memory_only_as_it_arrives_and_gives_it_back() {
    let limit = 16 << 20;
    let stream = encoded(&[(1, vec![9; 10 << 20])]);
    let mut reader = FrameReader::new();
    feed(&mut reader, &stream[..100], limit);
    assert_eq!(reader.next_frame(limit), Ok(None));
    assert!(reader.capacity() <= READ_BYTES, "a header alone allocates nothing");
    let mut fed = 100;
    while fed < stream.len() {
        fed += feed(&mut reader, &stream[fed..], limit);
        assert!(reader.capacity() <= 2 * fed.max(READ_BYTES));
    }
    assert_eq!(reader.next_frame(limit).expect("intact").expect("whole").payload.len(), 10 << 20);
    assert_eq!(reader.next_frame(limit), Ok(None));
    assert!(reader.capacity() <= READ_BYTES, "memory of a large frame is returned");

    // One of medium size is kept for the next of its kind, and goes when the connection has become quiet.
    let medium = encoded(&[(1, vec![9; 300_000])]);
    let small = encoded(&[(2, vec![])]);
    let mut take = |bytes: &[u8]| {
        let mut fed = 0;
        while fed < bytes.len() {
            fed += feed(&mut reader, &bytes[fed..], limit);
        }
        assert!(reader.next_frame(limit).expect("intact").is_some());
        assert_eq!(reader.next_frame(limit), Ok(None));
        reader.capacity()
    };
    assert!(take(&medium) >= 300_000);
    assert!(take(&small) >= 300_000);
    assert!((0..20).map(|_| take(&small)).last().expect("twenty") <= READ_BYTES);
}

// ---- Connections ---------------------------------------------------------------------------------------------------

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Polls, so that a test waits for the system and not for time.
struct Driver {
    poll: Poll,
    events: Events,
    until: Instant,
}

impl Driver {
    fn new() -> Driver {
        Driver {
            poll: Poll::new().expect("a poll"),
            events: Events::with_capacity(16),
            until: Instant::now() + PATIENCE,
        }
    }

    fn watch(&self, connection: &mut Connection, token: usize) {
        connection.register(self.poll.registry(), Token(token)).expect("registered");
    }

    /// Waits for some event; that none arrives is a failure.
    fn wait(&mut self) {
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing happened for {PATIENCE:?}");
            match self.poll.poll(&mut self.events, Some(left)) {
                Ok(()) if self.events.is_empty() => {}
                Ok(()) => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("poll: {error}"),
            }
        }
    }

    /// The same for events of a connection alone, which hears of them.
    fn wait_with(&mut self, connection: &mut Connection) {
        self.wait();
        self.events.iter().for_each(|event| connection.announce(event));
    }
}

/// A connection as a server sees it, and the other end as a plain blocking socket.
fn with_raw_peer(driver: &mut Driver, limits: Limits) -> (Connection, StdStream) {
    let (mut listener, addr) = listen(any_port()).expect("a port");
    driver.poll.registry().register(&mut listener, Token(99), Interest::READABLE).expect("registered");
    let peer = StdStream::connect(addr).expect("connected");
    peer.set_read_timeout(Some(PATIENCE)).expect("set");
    peer.set_write_timeout(Some(PATIENCE)).expect("set");
    loop {
        match accept(&listener) {
            Accepted::Stream(stream, from) => {
                assert_eq!(from, peer.local_addr().expect("bound"));
                let mut connection = Connection::accepted(stream, limits).expect("accepted");
                driver.watch(&mut connection, 0);
                assert!(connection.stream().nodelay().expect("readable"));
                return (connection, peer);
            }
            Accepted::Drained => driver.wait(),
            other => panic!("{other:?}"),
        }
    }
}

/// Both ends as connections, connected without blocking.
fn pair(driver: &mut Driver, limits: Limits) -> (Connection, Connection) {
    let (mut listener, addr) = listen(any_port()).expect("a port");
    driver.poll.registry().register(&mut listener, Token(99), Interest::READABLE).expect("registered");
    let mut outgoing = Connection::connect(addr, limits).expect("begun");
    driver.watch(&mut outgoing, 1);
    let mut incoming = None;
    while !outgoing.finish_connect().expect("connects") || incoming.is_none() {
        match accept(&listener) {
            Accepted::Stream(stream, _) => incoming = Some(stream),
            Accepted::Drained => driver.wait(),
            other => panic!("{other:?}"),
        }
    }
    let mut incoming = Connection::accepted(incoming.expect("accepted"), limits).expect("accepted");
    driver.watch(&mut incoming, 2);
    (outgoing, incoming)
}

/// Makes the system take a few kilobytes at a time, so that every larger write is a short one.
fn shrink_send_buffer(connection: &Connection) {
    let bytes: libc::c_int = 4096;
    // SAFETY: the descriptor is open, and the option points to an int of the size given.
    let rc = unsafe {
        libc::setsockopt(
            connection.stream().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUF,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(rc, 0, "{}", std::io::Error::last_os_error());
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 + i) as u8).collect()
}

/// Reads until the next event is needed; adds the frames to `got`. Returns whether the peer has finished.
fn drain(connection: &mut Connection, got: &mut Sent) -> bool {
    loop {
        let status = connection.fill().expect("readable");
        while let Some(frame) = connection.next_frame().expect("intact") {
            got.push((frame.kind, frame.payload.to_vec()));
        }
        if status != ReadStatus::More {
            return status == ReadStatus::Eof;
        }
    }
}

#[test]
fn large_frames_pass_through_tiny_socket_buffers_in_both_directions() {
    let mut driver = Driver::new();
    let (mut a, mut b) = pair(&mut driver, LIMITS);
    shrink_send_buffer(&a);
    shrink_send_buffer(&b);
    // The last one of `to_b` is beyond the limit of the send buffer, and taken all the same.
    let to_b = vec![(1, pattern(70_000)), (2, vec![]), (3, pattern(3_000_000))];
    let to_a = vec![(4, pattern(900_000)), (5, pattern(1))];
    for (from, frames) in [(&mut a, &to_b), (&mut b, &to_a)] {
        for (kind, payload) in frames {
            assert!(from.queue(*kind, |out| out.extend_from_slice(payload)));
        }
    }
    assert!(a.is_full() && !b.is_full());
    let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
    let mut short_writes = 0;
    loop {
        short_writes += usize::from(!a.flush().expect("writable"));
        short_writes += usize::from(!b.flush().expect("writable"));
        drain(&mut a, &mut at_a);
        drain(&mut b, &mut at_b);
        if at_a.len() == to_a.len() && at_b.len() == to_b.len() {
            break;
        }
        driver.wait();
    }
    assert_eq!((at_a, at_b), (to_a, to_b));
    assert!(short_writes > 3, "the system took everything at once; nothing was tested");
    assert!(a.flush().expect("writable") && b.flush().expect("writable"));
    assert_eq!((a.bytes_out(), b.bytes_out()), (b.bytes_in(), a.bytes_in()));
    // At once if it was far too much, otherwise when it has not been needed for a while.
    (0..32).for_each(|_| _ = drain(&mut a, &mut Vec::new()));
    assert!(a.buffer_bytes() < 200_000, "{} bytes held after the large frame", a.buffer_bytes());
}

#[test]
fn frames_queued_before_the_connection_stands_are_sent_once_it_does() {
    let mut driver = Driver::new();
    let listener = StdListener::bind(any_port()).expect("a port");
    let mut connection = Connection::connect(listener.local_addr().expect("bound"), LIMITS).expect("begun");
    driver.watch(&mut connection, 0);
    assert!(connection.queue(1, |out| out.push(42)));
    while !connection.flush().expect("connects") {
        driver.wait();
    }
    let (mut peer, _) = listener.accept().expect("accepted");
    peer.set_read_timeout(Some(PATIENCE)).expect("set");
    let expected = encoded(&[(1, vec![42])]);
    let mut got = vec![0; expected.len()];
    peer.read_exact(&mut got).expect("sent");
    assert_eq!(got, expected);
}

#[test]
fn a_refused_connection_is_an_error_of_that_connection() {
    let mut driver = Driver::new();
    let gone = StdListener::bind(any_port()).and_then(|l| l.local_addr()).expect("a port");
    let mut connection = match Connection::connect(gone, LIMITS) {
        Ok(connection) => connection,
        Err(_) => return,
    };
    driver.watch(&mut connection, 0);
    let error = loop {
        match connection.fill() {
            Ok(ReadStatus::Drained) => driver.wait(),
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_full_send_buffer_refuses_whole_frames_and_recovers() {
    let mut driver = Driver::new();
    let limits = Limits { send_bytes: 100_000, ..LIMITS };
    let (mut connection, mut peer) = with_raw_peer(&mut driver, limits);
    let payload = pattern(30_000);
    let mut queued = 0;
    // Nobody reads: first the system's buffers fill, then ours.
    loop {
        while connection.queue(1, |out| out.extend_from_slice(&payload)) {
            queued += 1;
        }
        if !connection.flush().expect("writable") && connection.is_full() {
            break;
        }
    }
    let held = connection.queued_bytes();
    assert!((100_000..131_000).contains(&held), "{held}");
    assert!(!connection.queue(2, |_| panic!("written to a full buffer")));
    assert!(!connection.queue_encoded(&[0; 10]));
    assert_eq!(connection.queued_bytes(), held);

    let frame = encoded(&[(1, payload)]);
    let reader = std::thread::spawn(move || {
        for _ in 0..queued {
            let mut got = vec![0; frame.len()];
            peer.read_exact(&mut got).expect("sent");
            assert!(got == frame);
        }
        let mut last = [0; HEADER_BYTES + 1];
        peer.read_exact(&mut last).expect("sent");
        assert_eq!(last[HEADER_BYTES], 3);
    });
    while !connection.flush().expect("writable") {
        driver.wait();
    }
    assert!(connection.queue_encoded(&encoded(&[(3, vec![])])));
    while !connection.flush().expect("writable") {
        driver.wait();
    }
    reader.join().expect("everything arrived in order");
}

#[test]
fn a_peer_that_closes_half_way_through_a_frame_is_an_end_with_unfinished_bytes() {
    let mut driver = Driver::new();
    let (mut connection, mut peer) = with_raw_peer(&mut driver, LIMITS);
    let stream = encoded(&[(1, pattern(10)), (2, pattern(500))]);
    peer.write_all(&stream[..stream.len() - 100]).expect("sent");
    // The data and the end may arrive as one event; both must be seen.
    peer.shutdown(Shutdown::Write).expect("shut down");
    let mut got = Vec::new();
    while !drain(&mut connection, &mut got) {
        driver.wait_with(&mut connection);
    }
    assert_eq!(got, [(1, pattern(10))]);
    assert_eq!(connection.unfinished_bytes(), HEADER_BYTES + 1 + 400);
    assert_eq!(connection.fill().expect("still at its end"), ReadStatus::Eof);
}

#[test]
fn a_reset_is_an_error_or_an_end_and_never_a_panic() {
    let mut driver = Driver::new();
    let (mut connection, peer) = with_raw_peer(&mut driver, LIMITS);
    assert!(connection.queue(1, |out| out.extend_from_slice(&pattern(1000))));
    assert!(connection.flush().expect("writable"));
    let mut first = [0; 1];
    (&peer).read_exact(&mut first).expect("sent");
    // Closing with unread data makes the system send a reset.
    drop(peer);
    loop {
        match connection.fill() {
            Ok(ReadStatus::Drained) => driver.wait_with(&mut connection),
            Ok(ReadStatus::Eof) | Err(_) => break,
            Ok(ReadStatus::More) => panic!("nothing was sent"),
        }
    }
}

#[test]
fn one_call_reads_a_budget_and_the_buffer_stays_bounded() {
    let mut driver = Driver::new();
    let limits = Limits { frame_bytes: 150_000, ..LIMITS };
    let (mut connection, mut peer) = with_raw_peer(&mut driver, limits);
    let frame = (1, pattern(140_000));
    let stream = encoded(&vec![frame.clone(); 20]);
    let expected_bytes = stream.len() as u64;
    let writer = std::thread::spawn(move || {
        peer.write_all(&stream).expect("sent");
        peer
    });
    // Frames are not taken: the buffer fills up to its bound and then asks for that instead of growing.
    let mut full = false;
    while !full {
        let before = connection.bytes_in();
        let status = connection.fill().expect("readable");
        let read = connection.bytes_in() - before;
        assert!(read <= Connection::READ_BUDGET as u64);
        full = status == ReadStatus::More && read == 0;
        if status == ReadStatus::Drained {
            driver.wait();
        }
    }
    assert!(connection.unfinished_bytes() <= 150_000 + HEADER_BYTES + READ_BYTES);
    let mut got = Vec::new();
    while got.len() < 20 {
        drain(&mut connection, &mut got);
        if got.len() < 20 {
            driver.wait();
        }
    }
    assert!(got.iter().all(|g| *g == frame));
    assert_eq!(connection.bytes_in(), expected_bytes);
    drop(writer.join().expect("all written"));
}

#[test]
fn garbage_ends_a_connection_with_an_error_that_says_why() {
    let mut driver = Driver::new();
    let (mut connection, mut peer) = with_raw_peer(&mut driver, LIMITS);
    peer.write_all(b"GET / HTTP/1.1\r\nHost: bank\r\n\r\n").expect("sent");
    while connection.unfinished_bytes() == 0 {
        driver.wait();
        connection.fill().expect("readable");
    }
    let error = connection.next_frame().expect_err("no frame");
    assert_eq!(error.to_string(), "frame of 542393671 bytes, where at most 8388608 are accepted");
}

// ---- Listening -----------------------------------------------------------------------------------------------------

#[test]
fn a_port_in_use_is_named() {
    let (_first, addr) = listen(any_port()).expect("a port");
    let error = listen(addr).expect_err("taken");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().starts_with(&format!("cannot listen on {addr}: ")), "{error}");
}

/// Lowers the process's limit, so it runs in a process of its own: the test starts itself again.
#[test]
fn without_descriptors_accepting_pauses_and_the_spare_one_turns_callers_away() {
    const MARK: &str = "NET_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(MARK).is_none() {
        let name = "without_descriptors_accepting_pauses_and_the_spare_one_turns_callers_away";
        let output = Command::new(std::env::current_exe().expect("known"))
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(MARK, "1")
            .output()
            .expect("started");
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: the pointer is to a valid rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let (listener, addr) = listen(any_port()).expect("a port");
    let mut spare = SpareFd::reserve().expect("a descriptor");
    let mut first = StdStream::connect(addr).expect("queued by the system");
    let _second = StdStream::connect(addr).expect("queued by the system");
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    for _ in 0..2 {
        match accept(&listener) {
            Accepted::Pause(error) => assert_eq!(error.raw_os_error(), Some(libc::EMFILE)),
            other => panic!("{other:?}"),
        }
    }
    let turned_away = spare.turn_away(&listener).expect("the spare one sufficed");
    assert_eq!(turned_away, Some(first.local_addr().expect("bound")));
    first.set_read_timeout(Some(PATIENCE)).expect("set");
    assert_eq!(first.read(&mut [0]).expect("closed by the server"), 0);
    assert!(matches!(accept(&listener), Accepted::Pause(_)), "the descriptor is reserved again");

    // Where another thread takes the descriptor first, the reserve comes back as soon as there is one.
    hoard.clear();
    assert!(matches!(accept(&listener), Accepted::Stream(..)));
    assert!(matches!(accept(&listener), Accepted::Drained));
    assert_eq!(spare.turn_away(&listener).expect("nobody waits"), None);
}
