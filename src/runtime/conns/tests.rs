//! Connections on real sockets, driven by a poll until a condition holds; the clock is the test's own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream as StdStream};
use std::os::fd::AsRawFd;
use std::time::Instant;

use mio::{Events, Poll};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);
const TOPOLOGY: Topology = Topology { clusters: 2, servers_per_cluster: 3, accounts: 6, initial_balance: 10 };
const START: Time = Time(10_000_000);
const S2: NodeId = NodeId(2);
const S3: NodeId = NodeId(3);
/// A server of the other cluster.
const S4: NodeId = NodeId(4);

struct End {
    poll: Poll,
    conns: Conns,
    listener: TcpListener,
}

impl End {
    /// All of `servers` have the address of its listener.
    fn new(servers: &[NodeId]) -> End {
        let poll = Poll::new().expect("a poll");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let addresses = servers.iter().map(|s| (*s, Address::from(address).into())).collect();
        let timeouts = Timeouts::default();
        let context = Context { cluster_id: 1, topology: TOPOLOGY, timeouts, addresses };
        let waker = Arc::new(Waker::new(poll.registry(), Token(usize::MAX)).expect("a waker"));
        let conns = Conns::new(context, poll.registry().try_clone().expect("a registry"), waker, 0);
        End { poll, conns, listener }
    }

    /// Takes in a connection, with its other end.
    fn accept(&mut self, now: Time) -> (usize, StdStream) {
        let other =
            StdStream::connect(self.listener.local_addr().expect("an address")).expect("a connection");
        let (token, _) = (self.conns.next_token, self.take_in(now));
        assert_eq!(self.conns.role(token), Some(Role::Stranger));
        (token, other)
    }

    /// What was closed to make room for it.
    fn take_in(&mut self, now: Time) -> Vec<usize> {
        let (stream, remote) = self.listener.accept().expect("the connection");
        stream.set_nonblocking(true).expect("a socket");
        let mut received = Vec::new();
        self.conns.accepted(now, (TcpStream::from_std(stream), remote), Door::Anybody, &mut received);
        received.into_iter().map(|item| item.token).collect()
    }

    /// Reads until something is closed; returns everything that came until then.
    fn until_closed(&mut self) -> Vec<Item> {
        let (start, mut events, mut received) = (Instant::now(), Events::with_capacity(16), Vec::new());
        loop {
            self.conns.receive(START, &mut received);
            if received.iter().any(|i| matches!(i.received, Received::Closed)) {
                return received;
            }
            assert!(start.elapsed() < PATIENCE, "nothing was closed");
            self.poll.poll(&mut events, Some(PATIENCE)).expect("a poll");
            events.iter().for_each(|event| self.conns.wake(event));
        }
    }
}

/// S1 recovers a transaction, and S4 of the other cluster is down. When the recovery is over nobody asks for S4 any more;
/// but the time from which S4 might be dialled again was in the past from then on, and S1's loop never slept.
#[test]
fn a_failed_dial_that_nobody_asks_for_again_leaves_no_deadline() {
    let mut end = End::new(&[S2, S4]);
    // Nobody listens there any more.
    end.listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    end.conns.dial(START, S4, Opener::Client);
    if end.conns.dialled(S4).is_some() {
        end.until_closed();
    }
    assert_eq!(end.conns.dialled(S4), None, "the dial failed");
    let due = end.conns.redial_due(&[S4]).expect("who asks for it hears when it may be tried again");
    assert!(due > START);
    assert_eq!(end.conns.redial_due(&[S2, S3]), None);
    // A peer is dialled again whatever happens, and alone decides how long the loop sleeps.
    let later = START + Duration::from_secs(1);
    end.conns.dial(later, S2, Opener::Peer { server: NodeId(1), incarnation: 1, process: 1 });
    if end.conns.dialled(S2).is_some() {
        end.until_closed();
    }
    assert!(end.conns.redial_due(&[S2, S3]).is_some_and(|due| due > later));
}

/// Each connection holds a descriptor, and there is no end to those who open one and say nothing.
#[test]
fn who_says_no_hello_for_five_seconds_is_closed() {
    let mut end = End::new(&[]);
    let (silent, mut other) = end.accept(START);
    let (greeted, _kept) = end.accept(START);
    let (late, _late) = end.accept(START + Duration::from_secs(1));
    end.conns.greet(greeted, Role::Client);
    let mut received = Vec::new();
    end.conns.expire_strangers(START + Duration::from_millis(4999), &mut received);
    assert!(received.is_empty() && end.conns.role(silent).is_some());
    end.conns.expire_strangers(START + Duration::from_secs(5), &mut received);
    assert_eq!(received.iter().map(|i| i.token).collect::<Vec<_>>(), [silent]);
    assert!(matches!(received[0], Item { role: Role::Stranger, received: Received::Closed, .. }));
    assert_eq!(end.conns.role(silent), None);
    assert_eq!(end.conns.role(greeted), Some(Role::Client));
    assert_eq!(end.conns.role(late), Some(Role::Stranger));
    assert_eq!(other.read(&mut [0; 1]).expect("the end of the connection"), 0);
    end.conns.expire_strangers(START + Duration::from_secs(60), &mut received);
    assert_eq!(received.iter().map(|i| i.token).collect::<Vec<_>>(), [silent, late]);
    assert_eq!(end.conns.role(greeted), Some(Role::Client));
}

/// A server that was silent for so long that another process of its name was let in was heard beside that when it spoke again.
#[test]
fn of_one_peer_the_newest_connection_stands() {
    let mut end = End::new(&[]);
    let [(older, mut first), (other, _second), (newer, _third)] = [(); 3].map(|()| end.accept(START));
    end.conns.greet(older, Role::Peer(S2));
    end.conns.greet(other, Role::Peer(S3));
    assert_eq!(end.conns.role(older), Some(Role::Peer(S2)));
    end.conns.greet(newer, Role::Peer(S2));
    let roles = [older, other, newer].map(|token| end.conns.role(token));
    assert_eq!(roles, [None, Some(Role::Peer(S3)), Some(Role::Peer(S2))]);
    assert_eq!(first.read(&mut [0; 1]).expect("the end of the connection"), 0);
}

/// A thousand connections sent as much as they could, each got its whole budget in one turn, and the turn took so long that
/// its leader was given up for dead.
#[test]
fn what_clients_do_to_one_turn_is_bounded_and_each_has_its_turn() {
    let mut end = End::new(&[]);
    let flood = b"PING\r\n".repeat(3000);
    let mut clients = Vec::new();
    for _ in 0..40 {
        let (token, mut other) = end.accept(START);
        other.set_nonblocking(true).expect("a socket");
        assert!(other.write(&flood).expect("room") > 6 * 1000);
        clients.push((token, other));
    }
    let (quiet, mut other) = end.accept(START);
    other.write_all(b"ECHO me\r\n").expect("room");
    let (peer, mut sends) = end.accept(START);
    end.conns.greet(peer, Role::Peer(S2));
    let mut bytes = Vec::new();
    let message = Message::GetPiece { slot: crate::types::Slot(64), n: 0 };
    crate::net::encode(crate::codec::kind::PEER, &mut bytes, |out| codec::encode(&message, out));
    sends.write_all(&bytes).expect("room");

    let mut seen: BTreeMap<usize, usize> = BTreeMap::new();
    for turn in 0.. {
        let mut received = Vec::new();
        end.conns.receive(START, &mut received);
        let requests = received.iter().filter(|item| item.role == Role::Resp).count();
        assert!(requests <= TURN_REQUESTS + SHARE_REQUESTS, "{requests} in one turn");
        received.iter().for_each(|item| *seen.entry(item.token).or_default() += 1);
        if turn == 4 {
            assert_eq!(seen.get(&peer), Some(&1), "a server waits for no client");
            assert_eq!(seen.get(&quiet), Some(&1), "nor does who sends little for who sends much");
            assert!(clients.iter().all(|(token, _)| seen.contains_key(token)), "{seen:?}");
            return;
        }
        assert!(end.conns.has_more(), "the rest is not forgotten");
    }
}

/// Ten thousand idle connections kept what a burst had made of their buffers.
#[test]
fn a_connection_that_falls_silent_gives_its_memory_back() {
    let mut end = End::new(&[]);
    let (token, mut other) = end.accept(START);
    other.write_all(&b"PING\r\n".repeat(2000)).expect("room");
    let mut taken = 0;
    while taken < 2000 {
        let mut received = Vec::new();
        end.conns.receive(START, &mut received);
        taken += received.len();
        end.conns.reply(token, received.len(), &b"+PONG\r\n".repeat(received.len()));
        end.conns.flush(&mut received);
    }
    let held = |end: &End| end.conns.conns[&token].connection.buffer_bytes();
    assert!(held(&end) >= 64 * 1024);
    end.conns.tend(START);
    end.conns.tend(START + Duration::from_secs(2));
    assert_eq!(held(&end), 0);
    other.write_all(b"PING\r\n").expect("room");
    let mut received = Vec::new();
    while received.is_empty() {
        end.conns.look_at(token);
        end.conns.receive(START, &mut received);
    }
}

/// Failures were counted up to eight, and the count chose the address: from then on it was always the same one.
#[test]
fn all_addresses_of_a_name_are_tried_in_turns_the_preferred_one_first() {
    let found: Vec<SocketAddr> = (1..=3).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
    let mut dial = dials::Dial { attempts: usize::MAX - 1, ..dials::Dial::default() };
    // Where the count starts over, one may be passed over.
    (0..2).for_each(|_| _ = dial.next_of(&found));
    let tried: Vec<SocketAddr> = (0..30).map(|_| dial.next_of(&found)).collect();
    assert!(tried.chunks(3).all(|three| three == found), "{tried:?}");
}

/// A server took in whoever came until it had no descriptor left; then it could not write its log any more, and stopped for good.
#[test]
fn the_longest_idle_connection_makes_room_and_none_that_waits_for_an_answer() {
    let mut end = End::new(&[]);
    end.conns.admit_at_most(4);
    let second = Duration::from_secs(1);
    let (waits, _one) = end.accept(START);
    (
        end.conns.conns.get_mut(&waits).expect("it is there").role,
        end.conns.conns.get_mut(&waits).expect("so").unanswered,
    ) = (Role::Resp, 1);
    let (operator, _two) = end.accept(START);
    end.conns.greet(operator, Role::Admin);
    let (oldest, _three) = end.accept(START + second);
    end.conns.greet(oldest, Role::Client);
    let (peer, _four) = end.accept(START);
    end.conns.greet(peer, Role::Peer(S2));
    let (newer, _five) = end.accept(START + 2 * second);
    end.conns.greet(newer, Role::Client);

    let newcomer =
        |end: &End| StdStream::connect(end.listener.local_addr().expect("an address")).expect("so");
    let later = START + 60 * second;
    let _six = newcomer(&end);
    assert_eq!(end.take_in(later), [oldest]);
    let _seven = newcomer(&end);
    assert_eq!(end.take_in(later), [newer]);
    // Those that came last are strangers, the older of which goes first; then there is nobody who may be closed.
    for conn in end.conns.conns.values_mut().filter(|conn| conn.role == Role::Stranger) {
        conn.role = Role::Admin;
    }
    let mut refused = newcomer(&end);
    assert!(end.take_in(later).is_empty());
    let mut said = String::new();
    refused.read_to_string(&mut said).expect("the end of the connection");
    assert!(said.starts_with("-ERR max number of clients"), "{said}");
    assert!([waits, operator, peer].iter().all(|token| end.conns.role(*token).is_some()));
}

/// A firewall that had forgotten a connection swallowed what was sent on it for a quarter of an hour, until the system gave up.
#[test]
fn a_peer_that_sends_nothing_is_dialled_anew_and_dead_ends_are_found_by_the_system() {
    let mut end = End::new(&[S2, S3]);
    let opener = Opener::Peer { server: NodeId(1), incarnation: 1, process: 1 };
    let message = Message::GetPiece { slot: crate::types::Slot(64), n: 0 };
    let [to_silent, to_talking] = [S2, S3].map(|s| end.conns.dial(START, s, opener).expect("it listens"));
    let (other, _second) = (end.listener.accept().expect("a dial"), end.listener.accept().expect("a dial"));
    let socket = end.conns.conns[&to_silent].connection.stream();
    assert!(rustix::net::sockopt::socket_keepalive(socket).expect("a socket"));
    assert_eq!(rustix::net::sockopt::tcp_user_timeout(socket).expect("a socket"), 6000);
    let (from_talking, mut talks) = end.accept(START);
    end.conns.greet(from_talking, Role::Peer(S3));
    let mut bytes = Vec::new();
    crate::net::encode(kind::PEER, &mut bytes, |out| codec::encode(&message, out));
    let mut received = Vec::new();
    for round in 0..60 {
        let now = START + round * Duration::from_millis(50);
        talks.write_all(&bytes).expect("room");
        end.conns.look_at(from_talking);
        end.conns.receive(now, &mut received);
        assert!(end.conns.send(to_silent, kind::PEER, &message));
        assert!(end.conns.send(to_talking, kind::PEER, &message));
        end.conns.give_up_silent(now, &[S2, S3], &mut received);
        if end.conns.dialled(S2) != Some(to_silent) {
            assert!(round > 40, "only after a while: {round}");
            assert_eq!(end.conns.dialled(S3), Some(to_talking));
            return drop(other);
        }
    }
    panic!("it still talks into the void");
}

/// `QUIT` closed the connection with what the socket had no room for yet; so did the end of what a client sends. Replies to
/// transfers that were committed were among it.
#[test]
fn what_is_queued_leaves_before_a_connection_ends() {
    let reply = vec![b'x'; 1 << 20];
    for half_closed in [false, true] {
        let mut end = End::new(&[]);
        let (token, mut other) = end.accept(START);
        other.write_all(b"PING\r\nQUIT\r\nPING\r\n").expect("room");
        if half_closed {
            other.shutdown(std::net::Shutdown::Write).expect("a socket");
        }
        let mut received = Vec::new();
        while received.len() < 3 {
            end.conns.look_at(token);
            end.conns.receive(START, &mut received);
        }
        for _ in 0..3 {
            end.conns.reply(token, 1, &reply);
        }
        if half_closed {
            end.conns.look_at(token);
            end.conns.receive(START, &mut received);
        } else {
            end.conns.leave(token, "it asked for that", &mut received);
        }
        assert!(
            matches!(received.last(), Some(Item { received: Received::Closed, .. })),
            "its owner is told"
        );
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            other.read_to_end(&mut all).map(|_| all.len())
        });
        let (start, mut events) = (Instant::now(), Events::with_capacity(16));
        while !reader.is_finished() {
            assert!(start.elapsed() < PATIENCE, "the end does not come");
            end.poll.poll(&mut events, Some(Duration::from_millis(20))).expect("a poll");
            events.iter().for_each(|event| end.conns.wake(event));
        }
        assert_eq!(reader.join().expect("no panic").expect("the end of the stream"), 3 << 20);
        end.conns.tend(START + Duration::from_secs(10));
        assert!(end.conns.leaving.is_empty());
    }
}

/// Who reads nothing holds what is queued for a while, and no longer.
#[test]
fn a_connection_that_is_to_end_does_so_in_time() {
    let mut end = End::new(&[]);
    let (token, _other) = end.accept(START);
    end.conns.greet(token, Role::Resp);
    (0..4).for_each(|_| end.conns.reply(token, 0, &vec![0; 4 << 20]));
    end.conns.leave(token, "it asked for that", &mut Vec::new());
    end.conns.tend(START + Duration::from_secs(4));
    assert_eq!(end.conns.leaving.len(), 1);
    end.conns.tend(START + Duration::from_secs(6));
    assert!(end.conns.leaving.is_empty());
}

/// Thousands of lines of garbage brought as many warnings, one for each that was read after the first.
#[test]
fn behind_a_protocol_error_nothing_is_read() {
    let mut end = End::new(&[]);
    let (token, mut other) = end.accept(START);
    let mut received = Vec::new();
    for _ in 0..20 {
        other.write_all(&b"*99999\r\n".repeat(1000)).expect("room");
        end.conns.look_at(token);
        end.conns.receive(START, &mut received);
    }
    assert_eq!(received.len(), 1);
    assert!(matches!(received[0].received, Received::Resp(Err(_))));
    let said = end.conns.name(token);
    assert_eq!(said, format!("Resp at {}", other.local_addr().expect("an address")));
}

/// A short read says that nothing is left, but for two things that stand behind it and bring no event of their own: the end of
/// the stream, and what follows urgent data. The event in which they were must be remembered.
#[test]
fn what_stands_behind_a_short_read_is_met() {
    let urgent = |other: &StdStream| {
        // SAFETY: the byte lives until the call returns, and the descriptor as long as `other`.
        let sent = unsafe { libc::send(other.as_raw_fd(), c"!".as_ptr().cast(), 1, libc::MSG_OOB) };
        assert_eq!(sent, 1);
    };
    for ends in [true, false] {
        let mut end = End::new(&[]);
        let (token, mut other) = end.accept(START);
        let mut received = Vec::new();
        // All that a new connection brings of events is over when this has come.
        other.write_all(b"PING\r\n").expect("room");
        let (mut events, start) = (Events::with_capacity(16), Instant::now());
        while received.is_empty() {
            assert!(start.elapsed() < PATIENCE, "the first request does not come");
            end.poll.poll(&mut events, Some(PATIENCE)).expect("a poll");
            events.iter().for_each(|event| end.conns.wake(event));
            end.conns.receive(START, &mut received);
            end.conns.receive(START, &mut received);
        }
        end.conns.reply(token, 1, b"+PONG\r\n");
        end.conns.flush(&mut received);

        other.write_all(b"PING\r\n").expect("room");
        if ends {
            other.shutdown(std::net::Shutdown::Write).expect("a socket");
        } else {
            urgent(&other);
            other.write_all(b"PING\r\n").expect("room");
        }
        // Loopback delivers before the call that sent returns, so that one event has all of it.
        end.poll.poll(&mut events, Some(PATIENCE)).expect("a poll");
        events.iter().for_each(|event| end.conns.wake(event));
        received.clear();
        while end.conns.has_more() {
            end.conns.receive(START, &mut received);
        }
        let requests = received.iter().filter(|item| matches!(item.received, Received::Resp(Ok(_)))).count();
        assert_eq!(requests, if ends { 1 } else { 2 });
        assert_eq!(end.conns.conns[&token].ended, ends);
    }
}
