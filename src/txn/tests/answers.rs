//! What a client is told and when, whatever the servers answer.

use super::*;
use crate::bank::command::transfers_bytes;
use crate::config::limits::{SESSION_WINDOW, VALUE_BYTES};

const D1: ShardId = ShardId(1);

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(super) fn outcomes(out: &Output) -> Vec<(u64, Outcome)> {
    out.answers.iter().map(|a| (a.tag, a.outcome.clone())).collect()
}

fn ask(tag: u64, op: Op) -> Input {
    Input::Submit { tag, op }
}

pub(super) fn refused(sent: &[(NodeId, Request)], from: NodeId, why: Refusal) -> Input {
    Input::Response { from, response: Response::Refused { request: frame(sent, from).0, why } }
}

fn unsure(sent: &[(NodeId, Request)], from: NodeId) -> Input {
    Input::Response { from, response: Response::Unsure { request: frame(sent, from).0 } }
}

/// What the last block of the only frame from `from` is answered with; the others take effect.
pub(super) fn answered(sent: &[(NodeId, Request)], from: NodeId, status: Status) -> Input {
    let mut results = vec![one(Status::Done); kinds(sent, from).len()];
    *results.last_mut().expect("a block") = one(status);
    done(sent, from, results)
}

/// The number of the only read for `to`.
fn read_number(sent: &[(NodeId, Request)], to: NodeId) -> u64 {
    let reads: Vec<u64> = sent
        .iter()
        .filter(|(server, r)| *server == to && matches!(r, Request::Read { .. }))
        .map(|(_, r)| r.number())
        .collect();
    assert_eq!(reads.len(), 1, "one read for {to} in {sent:?}");
    reads[0]
}

// ---- answers without a message ----

#[test]
fn what_no_server_could_execute_is_answered_at_once() {
    let mut world = World::client();
    let bad = Transfer { from: AccountId(1), to: AccountId(2), amount: 0 };
    let out = world.turn([
        ask(1, Op::Transfer(bad)),
        ask(2, Op::Read(AccountId(5))),
        ask(3, Op::Confirm { anew: false }),
        ask(4, Op::Settle),
    ]);
    // The third asks the servers first.
    let [(1, a), (2, b), (4, Outcome::Settled), (3, Outcome::Confirmed(reaches))] = &outcomes(&out)[..]
    else {
        panic!("{:?}", out.answers)
    };
    assert_eq!(*a, Outcome::Aborted(Reason::InvalidAmount));
    assert_eq!(*b, Outcome::Aborted(Reason::UnknownAccount));
    assert!(reaches.iter().all(|r| matches!(r, Reach::Leader { .. })), "{reaches:?}");
    assert_eq!(out.send, []);
    assert_eq!(world.coordinator.session(), Some(Session::new(D1, 1)));
}

/// T8: of what was never sent anybody may say that it will not happen.
#[test]
fn a_shard_without_a_majority_is_not_waited_for() {
    let mut world = World::client();
    world.lose_s2();
    let out = world.turn([
        submit(1, 1, 3),
        submit(2, 3, 4),
        submit(3, 1, 2),
        ask(4, Op::Read(AccountId(3))),
        ask(5, Op::Confirm { anew: false }),
        ask(6, Op::Settle),
    ]);
    let mut answers = outcomes(&out);
    answers.sort_by_key(|(tag, _)| *tag);
    let no_quorum = Outcome::Aborted(Reason::NoQuorum);
    assert_eq!(answers[0..2], [(1, no_quorum.clone()), (2, no_quorum.clone())]);
    assert_eq!(answers[2], (4, no_quorum));
    assert!(matches!(&answers[3], (5, Outcome::Confirmed(r)) if r[1] == Reach::NoQuorum));
    assert_eq!(answers.len(), 4, "transfer 3 is not settled: {answers:?}");
    let out = world.turn([answered(&out.send, S1, Status::Committed)]);
    assert_eq!(outcomes(&out), [(3, Outcome::Committed), (6, Outcome::Settled)]);
    // Asked anew, the coordinator looks again.
    world.leading.push(S2);
    let mut out = Output::default();
    world.coordinator.step(world.now, ask(7, Op::Confirm { anew: true }), &mut out);
    world.coordinator.step(world.now, Input::TurnEnd, &mut out);
    assert_eq!(out.answers, [], "S2 was not heard yet");
    assert_eq!(out.connect, [S2]);
}

/// T8: nothing of a transaction leaves while it is unknown whether all of its shards have a majority.
#[test]
fn a_transfer_across_shards_waits_for_both_leaders() {
    let mut world = World::new(Coordinator::new(TOPOLOGY, Timeouts::default(), START));
    world.turn([Input::Disconnected(S2)]);
    let out = world.turn([submit(1, 1, 3), submit(2, 1, 2)]);
    assert_eq!(kinds(&out.send, S1), ["open"]);
    let opened = BlockResult::Opened(Session::new(D1, 1));
    let out = world.turn([done(&out.send, S1, vec![opened])]);
    assert_eq!(kinds(&out.send, S1), ["transfers"]);
    let out = world.turn([Input::Connected(S2)]);
    assert_eq!(kinds(&out.send, S1).last(), Some(&"prepare"));
    assert_eq!(kinds(&out.send, S2).last(), Some(&"prepare"));
}

// ---- T3 ----

/// The client hears at once; the outcomes wait a millisecond for company, then go alone. What they are for is settled
/// when both shards have them.
#[test]
fn outcomes_go_a_millisecond_after_the_answer() {
    let mut world = World::client();
    let sent = world.turn([submit(1, 1, 3)]);
    assert_eq!(kinds(&sent.send, S1), ["mark", "prepare"]);
    let votes = [S1, S2].map(|server| answered(&sent.send, server, Status::Yes));
    let out = world.turn(votes.into_iter().chain([ask(2, Op::Settle)]));
    assert_eq!(outcomes(&out), [(1, Outcome::Committed)]);
    assert_eq!(out.send, []);
    assert_eq!(world.coordinator.next_deadline(), Some(world.now + millis(1)));
    let out = world.later(Duration::from_micros(999), []);
    assert_eq!(out.send, []);
    let out = world.later(Duration::from_micros(1), []);
    assert_eq!((kinds(&out.send, S1), kinds(&out.send, S2)), (vec!["outcome"], vec!["outcome"]));
    let last = world.turn([done(&out.send, S1, vec![one(Status::Done)])]);
    assert_eq!(outcomes(&last), []);
    let last = world.turn([done(&out.send, S2, vec![one(Status::Done)])]);
    assert_eq!(outcomes(&last), [(2, Outcome::Settled)]);
    // T7: only now may the marks pass it.
    let out = world.turn([submit(3, 1, 2)]);
    let (_, blocks) = frame(&out.send, S1);
    let first = command::blocks(&blocks.0).next().expect("a block").expect("one of our own");
    assert!(matches!(first, Command::Mark { mark: 3, .. }));
}

#[test]
fn a_mark_goes_ahead_of_a_read_too() {
    let mut world = World::client();
    let out = world.turn([ask(1, Op::Read(AccountId(1)))]);
    assert_eq!(kinds(&out.send, S1), ["mark"]);
    let request = read_number(&out.send, S1);
    assert!(matches!(out.send[..], [(_, Request::Submit { .. }), (_, Request::Read { .. })]));
    let response = Response::Balance { request, balance: Ok(7) };
    let out = world.turn([Input::Response { from: S1, response }]);
    assert_eq!(outcomes(&out), [(1, Outcome::Balance(7))]);
    assert_eq!(out.answers[0].first_sent, Some(world.now));
}

// ---- T8 ----

/// Every copy of transfer 1 was refused before it was proposed, so it will never happen; transfer 2 is on its way.
#[test]
fn what_was_refused_everywhere_is_aborted_and_what_is_on_its_way_is_unknown() {
    let mut world = World::client();
    let sent = world.turn([submit(1, 3, 4)]);
    let again = world.turn([refused(&sent.send, S2, Refusal::NotLeader(None))]);
    assert_eq!(kinds(&again.send, S2).last(), Some(&"transfers"));
    world.leading.retain(|s| *s != S2);
    let out = world.turn([refused(&again.send, S2, Refusal::NoQuorum)]);
    assert_eq!(outcomes(&out), []);
    world.turn([Input::Disconnected(S2)]);
    let out = world.later(Timeouts::default().election() * 2, []);
    assert_eq!(outcomes(&out), [(1, Outcome::Aborted(Reason::NoQuorum))]);

    let mut world = World::client();
    world.turn([submit(2, 3, 4)]);
    world.leading.retain(|s| *s != S2);
    world.turn([Input::Disconnected(S2)]);
    let out = world.later(Timeouts::default().election() * 2, []);
    assert_eq!(outcomes(&out), [(2, Outcome::Unknown)]);
    assert_eq!(outcomes(&world.later(millis(500), [])), [], "once is enough");
    world.leading.push(S2);
    let fence = world.turn([Input::Connected(S2)]);
    assert_eq!(kinds(&fence.send, S2).last(), Some(&"fence"));
    let out = world.turn([answered(&fence.send, S2, Status::Committed)]);
    assert_eq!(outcomes(&out), [(2, Outcome::Committed)], "it had taken effect");
}

/// Only one of two copies was refused: the other may have voted YES, so nothing is certain until a fence has been there.
#[test]
fn half_a_refusal_is_no_abort() {
    let mut world = World::client();
    let sent = world.turn([submit(1, 1, 3)]);
    world.leading.retain(|s| *s != S2);
    world.turn([refused(&sent.send, S2, Refusal::NotLeader(None)), Input::Disconnected(S2)]);
    let out = world.later(Timeouts::default().election() * 2, []);
    assert_eq!(outcomes(&out), [], "S1 will answer");
    let out = world.turn([answered(&sent.send, S1, Status::Yes)]);
    assert_eq!(outcomes(&out), [(1, Outcome::Unknown)]);
    world.leading.push(S2);
    let out = world.turn([Input::Connected(S2)]);
    assert_eq!(kinds(&out.send, S2).last(), Some(&"fence"), "it is not executed any more");
    let out = world.turn([answered(&out.send, S2, Status::Aborted(Reason::NoQuorum))]);
    assert_eq!(outcomes(&out), [(1, Outcome::Aborted(Reason::NoQuorum))]);
    let out = world.later(millis(1), []);
    assert_eq!((kinds(&out.send, S1), kinds(&out.send, S2)), (vec!["outcome"], vec!["outcome"]));
}

// ---- answers that do not fit ----

#[test]
fn an_unsure_or_missing_answer_is_asked_for_again_at_a_confirmed_leader() {
    let timeouts = Timeouts::default();
    for lost in [false, true] {
        let mut world = World::client();
        let sent = world.turn([submit(1, 1, 2)]);
        world.leading.clear();
        let out = if lost {
            let out = world.later(timeouts.unreachable() - millis(1), []);
            assert_eq!(out.events, []);
            world.later(millis(1), [])
        } else {
            world.turn([unsure(&sent.send, S1)])
        };
        assert!(out.events.contains(&Event::Retrying { shard: D1, units: 1 }));
        assert_eq!(out.send, [], "nobody is known to lead");
        world.leading.push(S1);
        // The probe of this search was not answered; the next one is.
        let out = world.later(timeouts.heartbeat() * 2, []);
        assert_eq!(kinds(&out.send, S1).last(), Some(&"transfers"));
        // A server that is unsure says so instead of answering; from a slow one the answer may still come.
        let out = world.turn([done(&sent.send, S1, vec![one(Status::Done), one(Status::Committed)])]);
        assert_eq!(outcomes(&out), if lost { vec![(1, Outcome::Committed)] } else { vec![] });
    }
}

#[test]
fn a_server_that_was_lost_is_sent_nothing_until_it_is_found_again() {
    let mut world = World::client();
    world.turn([submit(1, 1, 2)]);
    let out = world.turn([Input::Disconnected(S1)]);
    assert_eq!((out.send, out.connect), (vec![], vec![S1]));
    let out = world.turn([Input::Connected(S1)]);
    assert_eq!(kinds(&out.send, S1).last(), Some(&"transfers"));
}

#[test]
fn answers_that_the_protocol_does_not_provide_for_are_reported_and_asked_for_again() {
    let odd = |event: &Event| matches!(event, Event::Protocol { from: S1, .. });
    let timeouts = Timeouts::default();
    let two = BlockResult::pack(Status::Committed, &[Status::Committed; 2]);
    let mark = one(Status::Done);
    for (results, reported, pause) in [
        (vec![one(Status::Committed)], true, millis(5)),
        (vec![mark.clone(), two], false, millis(5)),
        (vec![mark.clone(), one(Status::Busy)], false, millis(5)),
        (vec![mark.clone(), one(Status::Invalid)], false, millis(5)),
    ] {
        let mut world = World::client();
        let sent = world.turn([submit(1, 1, 2)]);
        let out = world.turn([done(&sent.send, S1, results)]);
        assert_eq!((outcomes(&out), out.send, out.events.iter().any(odd)), (vec![], vec![], reported));
        let out = world.later(pause - millis(1), []);
        assert_eq!(out.send, [], "a pause first");
        let out = world.later(millis(1), []);
        assert_eq!(kinds(&out.send, S1).last(), Some(&"transfers"));
    }
    // Who calls our bytes malformed is left alone for longer.
    let mut world = World::client();
    let sent = world.turn([submit(1, 1, 2)]);
    let out = world.turn([refused(&sent.send, S1, Refusal::Malformed("what".into()))]);
    assert!(out.events.iter().any(odd));
    assert_eq!(world.later(timeouts.unreachable() - millis(1), []).send, []);
    assert_eq!(kinds(&world.later(millis(1), []).send, S1).last(), Some(&"transfers"));
}

// ---- several servers to a shard ----

/// A coordinator of one shard of three servers, all connected, S1 leading.
fn of_three() -> World {
    let topology = Topology { clusters: 1, servers_per_cluster: 3, ..TOPOLOGY };
    let coordinator = Coordinator::new(topology, Timeouts::default(), START);
    let mut world = World { coordinator, now: START, leading: vec![S1] };
    world.turn([S1, S2, NodeId(3)].map(Input::Connected));
    world
}

#[test]
fn the_leader_that_a_follower_names_is_preferred() {
    let mut world = of_three();
    let sent = world.turn([submit(1, 1, 2)]);
    world.leading = vec![];
    world.turn([refused(&sent.send, S1, Refusal::NotLeader(Some(NodeId(3))))]);
    assert_eq!(world.coordinator.links[0].hint, NodeId(3));
    world.turn([Input::Hint(S2)]);
    assert_eq!(world.coordinator.links[0].hint, S2);
}

/// Reads may wait long, so those at an old leader are asked again when there is a new one; those at the new one stay.
#[test]
fn reads_follow_a_new_leader() {
    let mut world = of_three();
    let at_s1 = world.turn([ask(1, Op::Read(AccountId(1)))]);
    let old = read_number(&at_s1.send, S1);
    let found = |request| {
        let (ballot, decided) = (Ballot::new(9, S2), Slot(1));
        Input::Response { from: S2, response: Response::Leading { request, ballot, decided } }
    };
    let out = world.turn([found(u64::MAX)]);
    let new = read_number(&out.send, S2);
    assert!(new > old);
    let response = Response::Balance { request: old, balance: Ok(3) };
    assert_eq!(outcomes(&world.turn([Input::Response { from: S1, response }])), [], "too old");
    let response = Response::Balance { request: new, balance: Ok(4) };
    assert_eq!(outcomes(&world.turn([Input::Response { from: S2, response }])), [(1, Outcome::Balance(4))]);
}

/// A read may honestly take long, so it is not given up early; but its leader may be gone, so it is asked once.
#[test]
fn a_read_that_takes_long_makes_sure_of_its_leader_once() {
    let unreachable = Timeouts::default().unreachable();
    let mut world = of_three();
    let sent = world.turn([ask(1, Op::Read(AccountId(1)))]);
    read_number(&sent.send, S1);
    assert_eq!(world.later(unreachable - millis(1), []).events, []);
    let confirmed = Event::LeaderFound { shard: D1, leader: S1, ballot: Ballot::new(1, S1) };
    let out = world.later(millis(1), []);
    assert_eq!((out.events, out.send), (vec![confirmed], vec![]), "S1 leads, and has the read");
    let out = world.later(unreachable, []);
    assert_eq!((out.events, out.send), (vec![], vec![]));

    let mut world = of_three();
    world.turn([ask(1, Op::Read(AccountId(1)))]);
    world.leading = vec![S2];
    let out = world.later(unreachable, []);
    read_number(&out.send, S2);
}

// ---- the window ----

/// Blocks of `sent` for S1, by frame: how many transactions each holds.
fn counts(sent: &[(NodeId, Request)]) -> Vec<u32> {
    let mut counts = Vec::new();
    for (to, request) in sent {
        let Request::Submit { blocks, .. } = request else { continue };
        assert!(blocks.len() <= VALUE_BYTES, "{} bytes in a frame", blocks.len());
        for block in command::blocks(&blocks.0) {
            if let (S1, Command::Transfers { range, .. }) = (*to, block.expect("blocks of our own")) {
                counts.push(range.count);
            }
        }
    }
    counts
}

fn answer_all(sent: &[(NodeId, Request)]) -> Vec<Input> {
    let answer = |(from, request): &(NodeId, Request)| {
        let Request::Submit { request, blocks } = request else { panic!("{request:?}") };
        let result = |block: Result<Command<'_>, String>| match block.expect("blocks of our own") {
            Command::Transfers { range, .. } => {
                BlockResult::pack(Status::Committed, &vec![Status::Committed; range.count as usize])
            }
            Command::Open { named: false } => BlockResult::Opened(Session::new(D1, 2)),
            _ => one(Status::Done),
        };
        let results = command::blocks(&blocks.0).map(result).collect();
        Input::Response { from: *from, response: Response::Done { request: *request, results } }
    };
    sent.iter().map(answer).collect()
}

/// B3: a session has room for so many transactions that are not finished; the others wait, and none is lost.
#[test]
fn no_more_is_sent_than_the_window_holds() {
    let mut world = World::client();
    let window = SESSION_WINDOW as u32;
    let out = world.turn((1..=SESSION_WINDOW + 100).map(|tag| submit(tag, 1, 2)));
    let sent = counts(&out.send);
    assert_eq!(sent.iter().sum::<u32>(), window);
    assert!(sent.iter().all(|n| transfers_bytes(*n as usize) <= VALUE_BYTES));
    assert_eq!(sent.len(), 9, "full slots: {sent:?}");
    assert!(!out.events.contains(&Event::SessionRenewed), "it will move");
    let out = world.turn(answer_all(&out.send));
    assert_eq!(out.answers.len(), window as usize);
    assert_eq!(counts(&out.send), [100]);
    assert!(!out.events.contains(&Event::SessionRenewed));
    let out = world.turn(answer_all(&out.send));
    assert_eq!(out.answers.len(), 100);
}

/// Transfer 1 is unknown and stays so while S2 is away; it keeps the mark, and when the window is used up the healthy
/// shard would have had to wait for the other one.
#[test]
fn a_window_that_cannot_move_is_left_for_a_new_session() {
    let mut world = World::client();
    let stuck = world.turn([submit(0, 1, 3)]);
    world.lose_s2();
    world.turn([answered(&stuck.send, S1, Status::Yes)]);
    let mut out = world.turn((1..=SESSION_WINDOW + 100).map(|tag| submit(tag, 1, 2)));
    assert_eq!(counts(&out.send).iter().sum::<u32>(), SESSION_WINDOW as u32 - 1);
    assert!(out.events.contains(&Event::SessionRenewed));
    let mut committed = 0;
    for _ in 0..3 {
        out = world.turn(answer_all(&out.send));
        committed += out.answers.iter().filter(|a| a.outcome == Outcome::Committed).count();
    }
    assert_eq!(committed, SESSION_WINDOW as usize + 100);
    assert_eq!(world.coordinator.session(), Some(Session::new(D1, 2)));
}

/// Answers that took longer than the coordinator waits were thrown away: every copy was executed, and none of them counted.
#[test]
fn an_answer_that_comes_too_late_counts() {
    let mut world = World::client();
    let patience = Timeouts::default().unreachable();
    let sent = world.turn([submit(1, 1, 2), submit(2, 1, 3)]);
    world.later(patience, []);
    let votes = vec![one(Status::Done), one(Status::Committed), one(Status::Yes)];
    let first = world.later(Duration::from_millis(100), [done(&sent.send, S1, votes)]);
    assert_eq!(outcomes(&first), [(1, Outcome::Committed)]);
    let second = world
        .later(Duration::from_millis(100), [done(&sent.send, S2, vec![one(Status::Done), one(Status::Yes)])]);
    assert_eq!(outcomes(&second), [(2, Outcome::Committed)]);
}
