//! Transfers that clients name, sessions for them, and questions about them.

use super::*;

const NAMED: Transfer = Transfer { from: AccountId(1), to: AccountId(3), amount: 1 };

fn world() -> World {
    World::new(Coordinator::hosted(TOPOLOGY, Timeouts::default(), START))
}

fn id(seq: u64) -> TxnId {
    TxnId { session: Session::new(ShardId(1), 7), seq }
}

fn named(tag: u64, seq: u64) -> Input {
    Input::Submit { tag, op: Op::Named { id: id(seq), transfer: NAMED } }
}

fn look_up(tag: u64, seq: u64) -> Input {
    Input::Submit { tag, op: Op::Lookup(id(seq)) }
}

/// Answers to all questions about ids in `sent`, by server.
fn statuses(
    sent: &[(NodeId, Request)],
    of: impl Fn(NodeId) -> (Option<Status>, Option<Transfer>),
) -> Vec<Input> {
    let answer = |(to, request): &(NodeId, Request)| {
        let Request::Status { request, .. } = request else { return None };
        let (status, name) = of(*to);
        let participants = (status == Some(Status::Yes)).then_some([ShardId(1), ShardId(2)]);
        let status = status.map(Status::code);
        let response = Response::Status { request: *request, status, name, participants };
        Some(Input::Response { from: *to, response })
    };
    sent.iter().filter_map(answer).collect()
}

fn outcomes(out: &Output) -> Vec<(u64, Outcome)> {
    out.answers.iter().map(|answer| (answer.tag, answer.outcome.clone())).collect()
}

/// A coordinator that has made sure of the session and sent a named transfer to both shards.
fn begun(world: &mut World) -> Output {
    let out = world.turn([named(1, 1)]);
    assert_eq!((kinds(&out.send, S1), out.send.len()), (vec!["touch"], 1), "its issuer hears of it first");
    let out = world.turn([done(&out.send, S1, vec![one(Status::Done)])]);
    assert_eq!((kinds(&out.send, S1), kinds(&out.send, S2)), (vec!["prepare"], vec!["prepare"]));
    out
}

/// A shard takes up a session of another one at the first mention. One that was never opened would stay for ever, and many
/// of them would leave no room for those that were.
#[test]
fn a_session_that_was_never_opened_is_not_mentioned() {
    let mut world = world();
    let out = world.turn([named(1, 1), named(2, 2)]);
    let out = world.turn([done(&out.send, S1, vec![one(Status::Expired)])]);
    let forgotten = vec![(1, Outcome::Forgotten), (2, Outcome::Forgotten)];
    assert_eq!((outcomes(&out), out.send), (forgotten, vec![]));
    let nowhere = TxnId { session: Session::new(ShardId(9), 1), seq: 1 };
    for (op, outcome) in [
        (Op::Named { id: nowhere, transfer: NAMED }, Outcome::Forgotten),
        (Op::Named { id: id(world.coordinator.named_max() + 1), transfer: NAMED }, Outcome::SessionFull),
        (Op::Lookup(nowhere), Outcome::Found(Found::NeverSeen)),
    ] {
        let out = world.turn([Input::Submit { tag: 2, op }]);
        assert_eq!((outcomes(&out), out.send), (vec![(2, outcome)], vec![]));
    }
}

/// No mark goes ahead of it: only its client knows what it will ask for again.
#[test]
fn a_named_transfer_commits_and_is_not_forgotten() {
    let mut world = world();
    let out = begun(&mut world);
    let out = world
        .turn([done(&out.send, S1, vec![one(Status::Yes)]), done(&out.send, S2, vec![one(Status::Yes)])]);
    assert_eq!(outcomes(&out), [(1, Outcome::Committed)]);
    let out = world.later(Duration::from_millis(2), []);
    assert_eq!(kinds(&out.send, S1), ["outcome"]);
    world.turn([done(&out.send, S1, vec![one(Status::Done)]), done(&out.send, S2, vec![one(Status::Done)])]);
    let out = world.turn([named(2, 2)]);
    assert_eq!(kinds(&out.send, S1), ["prepare"], "the session is known, and no mark is sent");
}

/// T8: other copies of it may be anywhere, so that none was sent from here proves nothing.
#[test]
fn what_was_never_sent_from_here_is_unknown_and_not_refused() {
    let mut world = world();
    begun(&mut world);
    world.lose_s2();
    let out = world.turn([named(2, 2)]);
    assert_eq!(outcomes(&out), [(2, Outcome::Unknown)]);
    assert!(!out.send.iter().any(|(_, request)| matches!(request, Request::Submit { .. })));
}

/// Its session was closed before it came: that is a NO for good. When the session is forgotten nobody can tell.
#[test]
fn a_session_that_ended_is_told_apart() {
    for (status, outcome) in [(Status::Closed, Outcome::Closed), (Status::Expired, Outcome::Forgotten)] {
        let mut world = world();
        let mut out = begun(&mut world);
        let mut answers = Vec::new();
        for _ in 0..3 {
            let inputs: Vec<Input> = [S1, S2]
                .into_iter()
                .filter(|server| out.send.iter().any(|(to, _)| to == server))
                .map(|server| done(&out.send, server, vec![one(status)]))
                .collect();
            if inputs.is_empty() {
                break;
            }
            out = world.turn(inputs);
            answers.extend(outcomes(&out));
        }
        assert_eq!(answers, [(1, outcome)], "no other name, no other session");
    }
}

#[test]
fn what_the_shards_say_of_an_id_is_added_up() {
    use Status::*;
    let no = Aborted(Reason::LockContention);
    for (one, other, found) in [
        (None, None, Found::NeverSeen),
        (Some(Yes), None, Found::InDoubt),
        (Some(Yes), Some(Yes), Found::Committed),
        (Some(YesCommitted), Some(Yes), Found::Committed),
        (Some(Committed), None, Found::Committed),
        (Some(Yes), Some(no), Found::Aborted(Some(Reason::LockContention))),
        (Some(YesAborted), None, Found::Aborted(None)),
        (Some(Closed), Some(Closed), Found::Aborted(None)),
        (Some(Closed), None, Found::NeverSeen),
        (Some(Closed), Some(no), Found::Aborted(Some(Reason::LockContention))),
        (Some(Finished), Some(Finished), Found::Finished),
        (Some(Expired), None, Found::Finished),
        (Some(Expired), Some(Yes), Found::Finished),
        (Some(Finished), Some(Yes), Found::Finished),
        (Some(Expired), Some(no), Found::Finished),
        (Some(Finished), Some(no), Found::Aborted(Some(Reason::LockContention))),
    ] {
        for swap in [false, true] {
            let mut world = world();
            let out = world.turn([look_up(5, 1)]);
            let (one, other) = if swap { (other, one) } else { (one, other) };
            let of = |server| (if server == S1 { one } else { other }, None);
            let out = world.turn(statuses(&out.send, of));
            assert_eq!(outcomes(&out), [(5, Outcome::Found(found))], "{one:?} {other:?}");
        }
    }
}

/// An id that was given to two transfers has registers of both: the vote of one shard says nothing about the other transfer.
#[test]
fn what_is_said_of_two_transfers_is_not_added_up() {
    use Status::*;
    for (one, other, found) in [
        (Yes, Yes, Found::InDoubt),
        (Yes, Aborted(Reason::LockContention), Found::InDoubt),
        (Committed, Aborted(Reason::LockContention), Found::Committed),
        (YesAborted, Aborted(Reason::LockContention), Found::Aborted(None)),
    ] {
        let mut world = world();
        let out = world.turn([look_up(5, 1)]);
        let another = Transfer { amount: 2, ..NAMED };
        let of = |server| if server == S1 { (Some(one), Some(NAMED)) } else { (Some(other), Some(another)) };
        let out = world.turn(statuses(&out.send, of));
        assert_eq!(outcomes(&out), [(5, Outcome::Found(found))], "{one:?} {other:?}");
    }
}

#[test]
fn nothing_is_said_of_an_id_while_a_shard_has_no_majority() {
    let mut world = world();
    world.turn([look_up(5, 1)]);
    let out = world.lose_s2();
    assert_eq!(out.answers, [], "it is looked for");
    let out = world.later(Timeouts::default().unreachable() * 2, []);
    let _ = out;
    let out = world.turn([look_up(6, 1)]);
    let late = world.later(Timeouts::default().unreachable() * 2, []);
    let all = [outcomes(&out), outcomes(&late)].concat();
    assert_eq!(all, [(6, Outcome::NoAnswer)]);
}

/// A shard without room for a session sends its client to the next.
#[test]
fn a_session_is_opened_where_there_is_room() {
    let full = BlockResult::pack(Status::Done, &[Status::Busy]);
    let mut world = world();
    let open = |tag| Input::Submit { tag, op: Op::Open };
    let out = world.turn([open(1)]);
    assert_eq!(kinds(&out.send, S1), ["open for names"]);
    let out = world.turn([done(&out.send, S1, vec![full.clone()])]);
    let opened = BlockResult::Opened(Session::new(ShardId(2), 3));
    let out = world.turn([done(&out.send, S2, vec![opened])]);
    assert_eq!(outcomes(&out), [(1, Outcome::Opened(Session::new(ShardId(2), 3)))]);
    let out = world.turn([open(2)]);
    let out = world.turn([done(&out.send, S1, vec![full.clone()])]);
    let out = world.turn([done(&out.send, S2, vec![full])]);
    assert_eq!((outcomes(&out), out.send), (vec![(2, Outcome::Aborted(Reason::NoSession))], vec![]));
}

/// The shard that issued a session hears nothing of what goes to others, and would let it expire.
#[test]
fn the_issuer_of_a_session_hears_that_it_is_in_use() {
    let mut world = world();
    let elsewhere = |tag, seq| {
        let transfer = Transfer { from: AccountId(3), to: AccountId(4), amount: 1 };
        Input::Submit { tag, op: Op::Named { id: id(seq), transfer } }
    };
    let out = world.turn([elsewhere(1, 1)]);
    let out = world.turn([done(&out.send, S1, vec![one(Status::Done)])]);
    world.turn([done(&out.send, S2, vec![one(Status::Committed)])]);
    let pause = Timeouts::default().session_idle().expect("they expire") / 16;
    for (seq, later, hears) in [(2, pause / 2, false), (3, pause, true), (4, pause / 2, false)] {
        let out = world.later(later, [elsewhere(seq, seq)]);
        assert_eq!(kinds(&out.send, S2), ["transfers"], "it does not wait for that");
        assert_eq!(out.send.iter().any(|(to, _)| *to == S1), hears, "{seq}");
        let mut answers = vec![done(&out.send, S2, vec![one(Status::Committed)])];
        if hears {
            assert_eq!(kinds(&out.send, S1), ["touch"]);
            answers.push(done(&out.send, S1, vec![one(Status::Done)]));
        }
        world.turn(answers);
    }
}

/// Something is left for a shard that has no majority, so that nobody looks for one: whoever comes then waited for ever.
#[test]
fn nobody_waits_for_a_shard_that_is_known_to_have_no_majority() {
    let mut world = world();
    begun(&mut world);
    world.lose_s2();
    let elsewhere = TxnId { session: Session::new(ShardId(2), 3), seq: 1 };
    let out = world.turn([Input::Submit { tag: 5, op: Op::Named { id: elsewhere, transfer: NAMED } }]);
    assert_eq!(outcomes(&out), [(5, Outcome::Unknown)], "its session is not known to be one");
    world.leading.clear();
    world.turn([Input::Disconnected(S1)]);
    let out = world.turn([Input::Submit { tag: 6, op: Op::Open }]);
    assert!(outcomes(&out).is_empty());
    world.leading.push(S1);
    let out = world.turn([Input::Connected(S1)]);
    assert!(kinds(&out.send, S1).contains(&"open for names"), "not at S2, which would not answer");
}
