//! The coordinator's loop, turn by turn, with a server that the test plays.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use super::*;
use crate::bank::{BlockResult, Status};
use crate::codec::{self, kind};
use crate::config::Topology;
use crate::net::{Address, FrameReader, encode};
use crate::txn::message::{Request, Response};
use crate::types::{Ballot, Session, ShardId, Slot, Transfer};

const PATIENCE: Duration = Duration::from_secs(30);
const TOPOLOGY: Topology = Topology { clusters: 1, servers_per_cluster: 1, accounts: 2, initial_balance: 10 };
const S1: NodeId = NodeId(1);

/// Turns the loop until a request arrives at the server.
fn next_request(
    stream: &mut TcpStream,
    reader: &mut FrameReader,
    mut turn_of_the_loop: impl FnMut(),
) -> Request {
    let start = Instant::now();
    loop {
        while let Some(frame) = reader.next_frame(1 << 20).expect("frames of our own") {
            if frame.kind == kind::REQUEST {
                return codec::decode(frame.payload).expect("a request");
            }
        }
        assert!(start.elapsed() < PATIENCE, "no request came");
        turn_of_the_loop();
        match stream.read(reader.space(1 << 20)) {
            Ok(0) => panic!("the coordinator closed the connection"),
            Ok(count) => reader.filled(count),
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
    }
}

fn answer(stream: &mut TcpStream, response: &Response) {
    let mut bytes = Vec::new();
    encode(kind::RESPONSE, &mut bytes, |out| codec::encode(response, out));
    stream.write_all(&bytes).expect("room for an answer");
}

/// A server answers a transfer and dies in the same moment. The answer stood in the same read as the end of the
/// connection, and since that was closed by the time the answer was looked at, nobody knew any more whom it came from:
/// it was thrown away, and a transfer that was known to be committed became unknown.
#[test]
fn an_answer_that_arrives_with_the_end_of_its_connection_counts() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = Address::from(listener.local_addr().expect("an address"));
    let addresses = [(S1, address.into())].into();
    let context = Context { cluster_id: 1, topology: TOPOLOGY, timeouts: Timeouts::default(), addresses };
    let mut poll = Poll::new().expect("a poll");
    let waker = Arc::new(Waker::new(poll.registry(), WAKER).expect("a waker"));
    let conns = Conns::new(context, poll.registry().try_clone().expect("a registry"), waker, FIRST_CONN);
    let (clock, timeouts) = (Clock::start(), Timeouts::default());
    let (commands, orders) = unbounded();
    let (reports, news) = unbounded();
    let coordinator = Coordinator::new(TOPOLOGY, timeouts, clock.now());
    let mut worker = Worker::new(Outlet { conns, coordinator }, clock, orders, reports);
    let (mut events, mut received) = (Events::with_capacity(16), Vec::new());

    let accounts = vec![AccountId(1), AccountId(2)];
    let op = Op::Transfer(Transfer { from: accounts[0], to: accounts[1], amount: 1 });
    let rows = vec![Row { tag: 1, accounts, op, cross: false }];
    commands.send(Command::Rows { rows, in_flight: 1, race: false }).expect("the loop is there");
    // A poll may wait for as long as the next deadline is away; there always is one while something is asked for.
    let mut turn = || assert!(worker.step(&mut poll, &mut events, &mut received));
    turn();
    let (mut stream, _) = listener.accept().expect("the coordinator dials");
    stream.set_nonblocking(true).expect("a socket");
    let (mut reader, mut opened) = (FrameReader::new(), false);
    loop {
        match next_request(&mut stream, &mut reader, &mut turn) {
            Request::Submit { request, .. } if opened => {
                let results = vec![BlockResult::pack(Status::Committed, &[Status::Committed])];
                answer(&mut stream, &Response::Done { request, results });
                break;
            }
            Request::Submit { request, .. } => {
                let results = vec![BlockResult::Opened(Session::new(ShardId(1), 1))];
                answer(&mut stream, &Response::Done { request, results });
                opened = true;
            }
            Request::Probe { request, .. } => {
                let (ballot, decided) = (Ballot::new(1, S1), Slot(1));
                answer(&mut stream, &Response::Leading { request, ballot, decided });
            }
            Request::Read { .. } | Request::Status { .. } => panic!("nobody reads"),
        }
    }
    drop((stream, listener));
    let start = Instant::now();
    let outcome = loop {
        match news.try_recv() {
            Ok(News::Row { outcome, .. }) => break outcome,
            _ => assert!(start.elapsed() < PATIENCE, "no outcome came"),
        }
        turn();
    };
    assert_eq!(outcome, Outcome::Committed);
}
