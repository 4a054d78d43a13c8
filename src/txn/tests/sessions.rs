//! Sessions that end (T7): how a leader lets them, and what their clients are told.

use super::*;

fn session(shard: u16, number: u64) -> Session {
    Session::new(ShardId(shard), number)
}

fn retire(number: u64, live: &[u64]) -> Input {
    Input::Retire {
        session: session(1, number),
        live: live.iter().map(|number| session(1, *number)).collect(),
    }
}

fn dropped(out: &Output) -> bool {
    out.events.iter().any(|event| matches!(event, Event::RetirementDropped { .. }))
}

/// S1's shard forgot a transaction that S2's held in doubt, and S2 took that for a NO: nobody may forget before
/// everybody has closed the session and nothing is left in doubt. The issuer comes last.
#[test]
fn a_session_expires_when_every_shard_has_closed_it_and_has_nothing_in_doubt() {
    let mut world = World::recoverer();
    let out = world.turn([retire(7, &[2, 5])]);
    assert_eq!((kinds(&out.send, S1), kinds(&out.send, S2)), (vec!["close"], vec!["close"]));
    let next = world.turn([done(&out.send, S1, vec![one(Status::Done)])]);
    assert_eq!(next.send, [], "S2 has not answered");
    let next = world.turn([done(&out.send, S2, vec![one(Status::Yes)])]);
    assert!(next.events.contains(&Event::RetirementWaits { session: session(1, 7), shard: ShardId(2) }));
    assert!(dropped(&next) && next.send.is_empty(), "something is in doubt there");

    let out = world.turn([retire(7, &[2, 5])]);
    assert_eq!(kinds(&out.send, S1), ["close"], "begun anew");
    let out = world.turn([S1, S2].map(|server| done(&out.send, server, vec![one(Status::Done)])));
    assert_eq!(out.send.len(), 1);
    let (_, blocks) = frame(&out.send, S2);
    let Some(Ok(Command::Expire { live, .. })) = command::blocks(&blocks.0).next() else {
        panic!("an expiry")
    };
    assert_eq!(live.iter().map(|n| n.get()).collect::<Vec<_>>(), [2, 5]);
    let out = world.turn([done(&out.send, S2, vec![one(Status::Done)])]);
    assert_eq!(kinds(&out.send, S1), ["expire"]);
    let out = world.turn([done(&out.send, S1, vec![one(Status::Done)])]);
    assert_eq!(out.events, [Event::SessionExpired { session: session(1, 7) }]);
    assert!(world.coordinator.retiring.is_empty());
}

/// A shard without a majority cannot close anything, and the others' logs filled up with attempts.
#[test]
fn nothing_is_closed_while_a_shard_cannot_be_reached() {
    let mut world = World::recoverer();
    world.leading.retain(|server| *server != S2);
    let out = world.turn([retire(7, &[])]);
    assert_eq!(out.send, []);
    let out = world.later(Timeouts::default().unreachable() * 7, []);
    assert!(dropped(&out) && out.send.is_empty());
    assert!(world.coordinator.links.iter().all(|link| link.units.is_empty()));
    // Whoever leads no more leaves it to others.
    world.leading.push(S2);
    world.turn([retire(7, &[])]);
    let out = world.turn([Input::Abandon]);
    assert!(dropped(&out) && world.coordinator.links.iter().all(|link| link.units.is_empty()));
}

fn outcomes(out: &Output) -> Vec<Outcome> {
    out.answers.iter().map(|answer| answer.outcome.clone()).collect()
}

/// A server answers its only frame: marks as usual, and what is behind them with this.
fn answer(out: &Output, from: NodeId, status: Status) -> Input {
    let kinds = kinds(&out.send, from);
    done(
        &out.send,
        from,
        kinds.iter().map(|kind| one(if *kind == "mark" { Status::Done } else { status })).collect(),
    )
}

fn opened(number: u64) -> BlockResult {
    BlockResult::Opened(session(1, number))
}

/// A client came back after a long time, and its first transfer was aborted for no reason that it could understand.
#[test]
fn what_was_never_executed_gets_another_name() {
    for status in [Status::Closed, Status::Expired] {
        let mut world = World::client();
        let sent = world.turn([submit(1, 1, 3)]);
        assert_eq!(kinds(&sent.send, S1), ["mark", "prepare"]);
        let out = world.turn([answer(&sent, S1, status)]);
        let expired = status == Status::Expired;
        assert!(
            out.events.contains(&Event::SessionLost { session: session(1, 1), expired }),
            "{:?}",
            out.events
        );
        assert_eq!(outcomes(&out), []);
        // S2 holds its account locked until it learns the decision; then the transfer may come again.
        let out = world.turn([answer(&sent, S2, Status::Yes)]);
        assert_eq!(outcomes(&out), []);
        assert!(kinds(&out.send, S1).contains(&"open"));
        let later = world.later(Duration::from_millis(1), []);
        let all = [out.send.clone(), later.send].concat();
        let (_, blocks) = frame(&all, S2);
        let abort = command::blocks(&blocks.0).last().expect("one block").expect("of ours");
        assert!(matches!(abort, Command::Outcome { commits: [0], .. }));
        let results = kinds(&out.send, S1).into_iter().map(|kind| match kind {
            "open" => opened(2),
            _ => one(Status::Done),
        });
        let out = world.turn([done(&out.send, S1, results.collect())]);
        assert_eq!(kinds(&out.send, S1), ["prepare"]);
        let (_, blocks) = frame(&out.send, S2);
        let prepare = command::blocks(&blocks.0).last().expect("one block").expect("of ours");
        assert!(matches!(prepare, Command::Prepare { range, .. } if range.session == session(1, 2)));
    }
}

/// Where an earlier copy may have been executed, *expired* says nothing: a transfer was called aborted that had taken
/// effect, and another time it was executed twice.
#[test]
fn what_may_have_been_executed_stays_unknown() {
    let mut world = World::client();
    let sent = world.turn([submit(1, 1, 2)]);
    let again = world.turn([Input::Disconnected(S1), Input::Connected(S1)]);
    assert_eq!(kinds(&again.send, S1), kinds(&sent.send, S1));
    let out = world.turn([done(&again.send, S1, vec![one(Status::Expired), one(Status::Expired)])]);
    assert_eq!(outcomes(&out), [Outcome::Unknown]);
    assert!(out.events.iter().any(|event| matches!(event, Event::Forgotten { count: 1, .. })));
    assert!(world.coordinator.groups.is_empty() && out.send.is_empty());
}

/// S1 has forgotten, and S2 voted YES long ago: only what S2 says after that tells how it ended.
#[test]
fn a_yes_from_before_the_expiry_says_nothing() {
    let no = Outcome::Aborted(Reason::NoQuorum);
    for (status, outcome) in [
        (Status::YesCommitted, Outcome::Committed),
        (Status::YesAborted, no.clone()),
        (Status::Yes, no.clone()),
        (Status::Closed, no),
        (Status::Expired, Outcome::Unknown),
    ] {
        let mut world = World::client();
        let sent = world.turn([submit(1, 1, 3)]);
        world.turn([answer(&sent, S2, Status::Yes)]);
        let again = world.turn([Input::Disconnected(S1), Input::Connected(S1)]);
        let fenced = world.turn([answer(&again, S1, Status::Expired)]);
        assert_eq!(outcomes(&fenced), []);
        assert_eq!(kinds(&fenced.send, S2).last(), Some(&"fence"));
        let out = world.turn([answer(&fenced, S2, status)]);
        assert_eq!(outcomes(&out), [outcome], "{status:?}");
    }
}

/// A shard that has no room is not asked for some in every turn; another one may have room.
#[test]
fn a_session_is_looked_for_elsewhere_if_there_is_no_room() {
    let mut world = World::new(Coordinator::new(TOPOLOGY, Timeouts::default(), START));
    let full = || vec![BlockResult::pack(Status::Done, &[Status::Busy])];
    let out = world.turn([submit(1, 1, 2)]);
    let out = world.turn([done(&out.send, S1, full())]);
    assert_eq!(out.send, []);
    assert_eq!(world.coordinator.next_deadline(), Some(START + Timeouts::default().election()));
    let out = world.later(Timeouts::default().election(), []);
    assert_eq!(kinds(&out.send, S2), ["open"]);
    world.turn([done(&out.send, S2, full())]);
    let out = world.later(Timeouts::default().election(), []);
    let out = world.turn([done(&out.send, S1, vec![opened(3)])]);
    assert_eq!(kinds(&out.send, S1), ["transfers"]);
}

/// Where no shard ever has room, its transfers waited for ever, and their clients with them.
#[test]
fn nobody_waits_for_ever_for_a_session() {
    let mut world = World::new(Coordinator::new(TOPOLOGY, Timeouts::default(), START));
    let full = || vec![BlockResult::pack(Status::Done, &[Status::Busy])];
    let mut out = world.turn([submit(1, 1, 2)]);
    let mut told = Vec::new();
    while told.is_empty() && world.now < START + Timeouts::default().read() * 2 {
        let asked = out.send.iter().find(|(_, request)| matches!(request, Request::Submit { .. }));
        let answer = asked.map(|(to, _)| done(&out.send, *to, full()));
        out = match answer {
            Some(answer) => world.turn([answer]),
            None => world.later(Timeouts::default().election(), []),
        };
        told.extend(out.answers.iter().map(|answer| answer.outcome.clone()));
    }
    assert_eq!(told, [Outcome::Aborted(Reason::NoSession)]);
    assert!(world.now >= START + Timeouts::default().read(), "another client may leave any moment");
    assert_eq!(world.coordinator.next_deadline(), None);
    // The next one is tried for anew.
    let out = world.turn([submit(2, 1, 2)]);
    let out = if out.send.is_empty() { world.later(Timeouts::default().election(), []) } else { out };
    assert!(out.send.iter().any(|(to, _)| kinds(&out.send, *to) == ["open"]));
}
