//! Schedules that once broke a server, and input that no coordinator of ours would send.

mod slow;
mod space;

use std::time::Duration;

use super::*;
use crate::bank::command::Range;
use crate::paxos::Message;
use crate::paxos::message::{Accepted, Heartbeat, HeartbeatReply, PreVoteReply, Promise};
use crate::types::AccountId;
use crate::types::{Incarnation, Session, Transfer};

const DISK: Incarnation = Incarnation(0);
const S1: NodeId = NodeId(1);
const S2: NodeId = NodeId(2);

/// A shard of one server, which leads as soon as its first deadline has passed.
fn alone() -> (Shard, Time) {
    let topology = Topology { clusters: 2, servers_per_cluster: 1, accounts: 4, initial_balance: 10 };
    let timeouts = Timeouts::default();
    let restored = (Ballot::ZERO, Slot::ZERO, Vec::new());
    let replica = Replica::new(NodeId(1), vec![NodeId(1)], timeouts, Time(0), 1, restored);
    let bank = Bank::new(topology, ShardId(1));
    let mut shard = Shard::new(NodeId(1), topology, timeouts, Time(0), replica, bank);
    let now = shard.next_deadline();
    turn(&mut shard, now, Input::Timer { random: 1 });
    assert!(shard.replica().is_leader());
    (shard, now)
}

fn turn(shard: &mut Shard, now: Time, input: Input) -> Output {
    let (mut out, mut all) = (Output::default(), Output::default());
    shard.step(now, input, &mut out);
    loop {
        shard.step(now, Input::TurnEnd, &mut out);
        let done = std::mem::take(&mut out);
        all.replies.extend(done.replies);
        all.events.extend(done.events);
        all.connect.extend(done.connect);
        // What is for others is lost; S1 hears itself.
        let own: Vec<_> = done.paxos.after.into_iter().filter(|(to, _)| *to == S1).collect();
        if own.is_empty() {
            return all;
        }
        for (from, message) in own {
            shard.step(now, Input::Peer { from, message }, &mut out);
        }
    }
}

/// The leader armed a timer for the prepare after the outcome had already disarmed it, and panicked when it fired.
#[test]
fn a_prepare_and_its_outcome_in_one_slot_leave_nothing_in_doubt() {
    let (mut shard, now) = alone();
    let mut blocks = Vec::new();
    let range = Range { session: Session::new(ShardId(2), 1), first: 1, count: 1 };
    let transfer = Transfer { from: AccountId(1), to: AccountId(3), amount: 1 };
    command::put_prepare(&mut blocks, range, [ShardId(1), ShardId(2)], &[transfer]);
    command::put_outcome(&mut blocks, range, &[0]);
    let request = Request::Submit { request: 1, blocks: Value::from_slice(&blocks) };
    let out = turn(&mut shard, now, Input::Request { client: ClientId(1), request });
    assert!(matches!(&out.replies[..], [(_, Response::Done { results, .. })] if results.len() == 2));
    let later = now + Duration::from_secs(10);
    let out = turn(&mut shard, later, Input::Timer { random: 1 });
    assert!(!out.events.iter().any(|e| matches!(e, Event::Recovering { .. })));
}

/// S1 of a cluster of three, leading in ballot 1.S1 with the promise of S2; there is one more such cluster.
fn leader_of_three() -> (Shard, Time) {
    let topology = Topology { clusters: 2, servers_per_cluster: 3, accounts: 4, initial_balance: 10 };
    let timeouts = Timeouts::default();
    let restored = (Ballot::ZERO, Slot::ZERO, Vec::new());
    let replica = Replica::new(S1, vec![S1, S2, NodeId(3)], timeouts, Time(0), 1, restored);
    let bank = Bank::new(topology, ShardId(1));
    let mut shard = Shard::new(S1, topology, timeouts, Time(0), replica, bank);
    let now = shard.next_deadline();
    turn(&mut shard, now, Input::Timer { random: 1 });
    let granted = PreVoteReply { attempt: 1, granted: true, promised: Ballot::ZERO };
    turn(&mut shard, now, from_s2(Message::PreVoteReply(granted)));
    let promise = Promise {
        ballot: Ballot::new(1, S1),
        decided: Slot::ZERO,
        votes: Vec::new(),
        loss: None,
        incarnation: DISK,
    };
    turn(&mut shard, now, from_s2(Message::Promise(promise)));
    assert!(shard.replica().is_leader());
    (shard, now)
}

fn from_s2(message: Message) -> Input {
    Input::Peer { from: S2, message }
}

fn read(request: u64) -> Input {
    let request = Request::Read { request, account: AccountId(1), local: false };
    Input::Request { client: ClientId(1), request }
}

/// A client that sends reads faster than a majority confirms the leader filled its memory.
#[test]
fn reads_beyond_the_limit_are_answered_busy() {
    let (mut shard, now) = alone();
    let (most, mut out) = (limits::WAITING_READS as u64, Output::default());
    for number in 0..most {
        shard.step(now, read(number), &mut out);
    }
    assert_eq!(out.replies, []);
    shard.step(now, read(most), &mut out);
    // Probes find as much room again, and no more.
    for request in most + 1..most * 2 + 2 {
        let request = Request::Probe { request, campaign: false };
        shard.step(now, Input::Request { client: ClientId(1), request }, &mut out);
    }
    let busy = |request| (ClientId(1), Response::Refused { request, why: Refusal::Busy });
    assert_eq!(out.replies, [busy(most), busy(most * 2 + 1)]);
    let answers = turn(&mut shard, now, read(0)).replies;
    assert_eq!(answers[0], busy(0));
    let balance = |request| (ClientId(1), Response::Balance { request, balance: Ok(10) });
    assert!(answers[1..].iter().take(most as usize).cloned().eq((0..most).map(balance)));
    assert_eq!(answers.len() as u64, 1 + most * 2);
    // There is room again.
    assert_eq!(turn(&mut shard, now, read(0)).replies, [balance(0)]);
}

/// Two reads wait for their round, and in one turn both its confirmation and another message arrive. Every message used
/// to walk through all the reads that wait.
#[test]
fn reads_are_answered_once_when_the_turn_ends() {
    let (mut shard, now) = leader_of_three();
    let mut out = Output::default();
    shard.step(now, read(1), &mut out);
    shard.step(now, read(2), &mut out);
    shard.step(now, Input::TurnEnd, &mut out);
    let round = out.paxos.now.iter().rev().find_map(|(_, message)| match message {
        Message::Heartbeat(heartbeat) => Some(heartbeat.round),
        _ => None,
    });
    let round = round.expect("reads begin a round");
    let reply = HeartbeatReply {
        ballot: Ballot::new(1, S1),
        round,
        position: Slot::ZERO,
        room: None,
        doubts: crate::paxos::message::Doubts::None,
        incarnation: DISK,
    };
    let mut out = Output::default();
    shard.step(now, from_s2(Message::HeartbeatReply(reply)), &mut out);
    assert_eq!(out.replies, [], "the turn goes on");
    shard.step(now, Input::TurnEnd, &mut out);
    let balance = |request| (ClientId(1), Response::Balance { request, balance: Ok(10) });
    assert_eq!(out.replies, [balance(1), balance(2)]);
}

/// What it has heard counts for an election time-out, and of a new leader only what confirms its own ballot.
#[test]
fn a_cluster_is_led_as_long_as_its_leader_is_heard() {
    let (mut shard, now) = leader_of_three();
    let timeout = Timeouts::default().election();
    assert_eq!(shard.replica().led_until(now), None, "promises confirm no leader");
    let echo = |ballot| {
        let (round, position, doubts) = (1, Slot::ZERO, crate::paxos::message::Doubts::None);
        let reply = HeartbeatReply { ballot, round, position, room: None, doubts, incarnation: DISK };
        from_s2(Message::HeartbeatReply(reply))
    };
    let heard = now + Duration::from_millis(7);
    turn(&mut shard, heard, echo(Ballot::new(1, S1)));
    let later = now + Duration::from_millis(20);
    assert_eq!(shard.replica().led_until(later), Some(heard + timeout), "S2 and S1 are a majority");
    let (decided, phase1_end) = (Slot::ZERO, Slot::ZERO);
    let ballot = Ballot::new(2, S2);
    turn(&mut shard, later, from_s2(Message::Heartbeat(Heartbeat { ballot, round: 1, decided, phase1_end })));
    let even_later = later + timeout;
    assert_eq!(shard.replica().led_until(even_later), Some(later + timeout), "it follows S2");
    turn(&mut shard, even_later, Input::Resume);
    assert_eq!(shard.replica().led_until(even_later), None, "it knows no leader");
}

#[test]
fn what_was_applied_is_said_once_and_for_all_slots_together() {
    let (mut shard, now) = alone();
    let session = Session::new(ShardId(2), 1);
    let transfer = |seq, from, to, amount| {
        let mut blocks = Vec::new();
        let transfer = Transfer { from: AccountId(from), to: AccountId(to), amount };
        command::put_transfers(&mut blocks, Range { session, first: seq, count: 1 }, &[transfer]);
        let request = Request::Submit { request: seq, blocks: Value::from_slice(&blocks) };
        Input::Request { client: ClientId(1), request }
    };
    let mut out = Output::default();
    shard.step(now, transfer(1, 1, 2, 3), &mut out);
    assert_eq!(shard.queue(), (1, command::transfers_bytes(1)));
    shard.step(now, transfer(2, 1, 2, 99), &mut out);
    let applied = |out: &Output| -> Vec<Event> {
        out.events.iter().filter(|e| matches!(e, Event::Applied { .. })).cloned().collect()
    };
    let out = turn(&mut shard, now, transfer(3, 2, 1, 1));
    let aborted = vec![Some(Reason::InsufficientBalance)];
    assert_eq!(applied(&out), [Event::Applied { committed: 2, aborted }]);
    assert_eq!(shard.queue(), (0, 0));
    // Its client sends it once more.
    let out = turn(&mut shard, now, transfer(3, 2, 1, 1));
    assert!(matches!(&out.replies[..], [(_, Response::Done { .. })]) && applied(&out).is_empty());
}

/// S1 holds a transaction in doubt and has begun to recover it when S2 takes the lead over. From then on it is up to S2.
#[test]
fn a_leader_that_is_none_any_more_abandons_its_recoveries() {
    let (mut shard, now) = leader_of_three();
    let mut blocks = Vec::new();
    let id = TxnId { session: Session::new(ShardId(2), 1), seq: 1 };
    let range = Range { session: id.session, first: id.seq, count: 1 };
    let transfer = Transfer { from: AccountId(1), to: AccountId(3), amount: 1 };
    command::put_prepare(&mut blocks, range, [ShardId(1), ShardId(2)], &[transfer]);
    let request = Request::Submit { request: 1, blocks: Value::from_slice(&blocks) };
    turn(&mut shard, now, Input::Request { client: ClientId(1), request });
    let accepted = Accepted { ballot: Ballot::new(1, S1), position: Slot(1), incarnation: DISK };
    turn(&mut shard, now, from_s2(Message::Accepted(accepted.clone())));
    assert!(shard.bank().is_locked(AccountId(1)) && shard.bank().holds().get(&id).is_some());
    // Its time is over at the latest after twice the time-out, and S2 has been heard all the while.
    let (prepared, mut now) = (now, now);
    let mut out = Output::default();
    while !out.events.contains(&Event::Recovering { id }) {
        assert!(now.since(prepared) <= Timeouts::default().in_doubt() * 2, "it stays in doubt");
        now = now + Timeouts::default().heartbeat();
        shard.step(now, Input::Timer { random: 1 }, &mut Output::default());
        out = turn(&mut shard, now, from_s2(Message::Accepted(accepted.clone())));
    }
    assert!(out.connect.contains(&NodeId(4)), "it looks for the other shard: {:?}", out.connect);
    let heartbeat =
        Heartbeat { ballot: Ballot::new(2, S2), round: 1, decided: Slot(1), phase1_end: Slot::ZERO };
    let out = turn(&mut shard, now, from_s2(Message::Heartbeat(heartbeat)));
    assert!(!shard.replica().is_leader());
    assert!(out.events.contains(&Event::Recovery(txn::Event::RecoveryDropped { id })), "{:?}", out.events);
    let out = turn(&mut shard, now + Timeouts::default().heartbeat(), Input::Timer { random: 1 });
    assert_eq!(out.connect, [], "nobody is looked for any more");
}

/// Reads that waited for a lock took every place, probes were answered *busy* as well, and so neither the lock's owner nor
/// the leader's own recoverer found the leader: the lock stayed for as long as clients kept asking.
#[test]
fn a_leader_full_of_reads_can_still_be_found() {
    let (shard, now) = alone();
    let limits = Limits { waiting_reads: 3, ..Limits::default() };
    let mut shard = shard.with_limits(limits);
    let mut blocks = Vec::new();
    let range = Range { session: Session::new(ShardId(2), 1), first: 1, count: 1 };
    let transfer = Transfer { from: AccountId(1), to: AccountId(3), amount: 1 };
    command::put_prepare(&mut blocks, range, [ShardId(1), ShardId(2)], &[transfer]);
    let request = Request::Submit { request: 1, blocks: Value::from_slice(&blocks) };
    turn(&mut shard, now, Input::Request { client: ClientId(1), request });
    let busy = |out: Output| {
        let refused = |r: &Response| matches!(r, Response::Refused { why: Refusal::Busy, .. });
        out.replies.iter().any(|(_, response)| refused(response))
    };
    for number in 2..5 {
        assert!(!busy(turn(&mut shard, now, read(number))));
    }
    assert!(busy(turn(&mut shard, now, read(5))));
    let probe = Request::Probe { request: 6, campaign: false };
    let out = turn(&mut shard, now, Input::Request { client: ClientId(1), request: probe });
    assert!(matches!(&out.replies[..], [(_, Response::Leading { request: 6, .. })]), "{:?}", out.replies);
}

/// A request of 256 KiB could name 90 million sequences with fences alone, and applying it would take seconds.
#[test]
fn a_request_names_no_more_sequences_than_a_window_and_its_outcomes_have() {
    let (mut shard, now) = alone();
    let fences = |blocks: u64| {
        let mut bytes = Vec::new();
        for n in 0..blocks {
            let first = 1 + n * command::MAX_SEQUENCES / 16;
            let count = (command::MAX_SEQUENCES / 16) as u32;
            command::put_fence(&mut bytes, Range { session: Session::new(ShardId(2), 1), first, count });
        }
        let blocks = Value::from_slice(&bytes);
        Input::Request { client: ClientId(1), request: Request::Submit { request: 1, blocks } }
    };
    let out = turn(&mut shard, now, fences(17));
    assert!(matches!(&out.replies[..], [(_, Response::Refused { why: Refusal::Malformed(_), .. })]));
    // Two that are allowed do not come into one slot.
    let mut out = Output::default();
    shard.step(now, fences(16), &mut out);
    let out = turn(&mut shard, now, fences(1));
    assert_eq!(out.replies.len(), 2);
    assert_eq!(shard.bank().applied(), Slot(2));
}

/// Which disk of a server counts is decided by its leader's word. A client that could say it would make votes vanish.
#[test]
fn clients_let_nobody_in() {
    let (mut shard, now) = alone();
    let mut blocks = Vec::new();
    command::put_rejoin(&mut blocks, S1, Incarnation(7), Ballot::new(1, S1));
    let request = Request::Submit { request: 1, blocks: Value(blocks.into()) };
    let out = turn(&mut shard, now, Input::Request { client: ClientId(1), request });
    assert!(matches!(&out.replies[..], [(_, Response::Refused { why: Refusal::Malformed(_), .. })]));
}
