//! A leader that leaves, and the server that it leaves the lead to.

use super::*;
use crate::paxos::handover::LEAVES;

fn resign(replica: &mut Replica, now: Time) -> (bool, Vec<(NodeId, Message)>) {
    let mut left = false;
    let sent = step(replica, now, |r, out| left = r.resign(now, LEAVES, out));
    (left, sent)
}

/// Not with a slot in flight: its client could not be told what becomes of it.
#[test]
fn a_leader_resigns_when_all_it_proposed_is_decided_and_to_who_has_come_furthest() {
    let (mut s1, now) = leader();
    let ballot = s1.promised();
    step(&mut s1, now, |r, out| _ = r.propose(Value::from_slice(b"x"), out));
    for (from, position) in [(S2, 3), (S3, 3)] {
        step(&mut s1, now, |r, out| r.message(now, from, echo(ballot, 1, position), out));
    }
    assert_eq!(resign(&mut s1, now), (false, vec![]));
    step(&mut s1, now, |r, out| r.message(now, S3, echo(ballot, 1, 4), out));
    assert_eq!(s1.decided(), Slot(4));
    let mut out = Output::default();
    assert!(s1.resign(now, LEAVES, &mut out) && !s1.is_leader());
    assert!(out.now.contains(&(S3, Message::Resign { ballot })), "{:?}", out.now);
    assert!(!out.now.iter().any(|(to, m)| *to == S2 && matches!(m, Message::Resign { .. })));
    assert!(out.events.contains(&Event::LostLeadership { ballot, why: LEAVES }));
    assert_eq!(resign(&mut s1, now), (true, vec![]), "it has");
    // Its clients still ask it. It leaves the lead to the others as long as they may take to find that nobody leads, also
    // if one of them tries and is not heard of again.
    let election = Timeouts::default().election();
    let prepare = Prepare { ballot: Ballot::new(2, S3), decided: Slot(4) };
    step(&mut s1, now, |r, out| r.message(now, S3, Message::Prepare(prepare), out));
    for at in
        [now, now + election + Duration::from_micros(1), now + (election * 2 - Duration::from_micros(1))]
    {
        assert_eq!(step(&mut s1, at, |r, out| r.campaign_if_leaderless(at, out)), vec![]);
    }
    let later = now + election * 2;
    let sent = step(&mut s1, later, |r, out| r.campaign_if_leaderless(later, out));
    assert!(sent.iter().any(|(_, m)| matches!(m, Message::PreVote(_))), "{sent:?}");
}

/// It used to wait no longer than its followers, and took the lead back whenever nobody had heard it resign.
#[test]
fn who_left_the_lead_is_the_last_to_ask_for_it() {
    let (mut s1, now) = leader();
    let ballot = s1.promised();
    for from in [S2, S3] {
        step(&mut s1, now, |r, out| r.message(now, from, echo(ballot, 1, 3), out));
    }
    assert!(resign(&mut s1, now).0);
    assert!(s1.next_deadline() >= now + Timeouts::default().election() * 2);
}

/// Nobody who was not heard lately, or may have forgotten votes, is of use. It goes all the same.
#[test]
fn a_leader_without_a_successor_only_stops_leading() {
    let (mut s1, now) = leader();
    let ballot = s1.promised();
    let mut doubtful = echo(ballot, 1, 3);
    if let Message::HeartbeatReply(m) = &mut doubtful {
        m.doubts = Doubts::Standing;
    }
    step(&mut s1, now, |r, out| r.message(now, S2, doubtful, out));
    let (left, sent) = resign(&mut s1, now);
    assert!(left && !sent.iter().any(|(_, m)| matches!(m, Message::Resign { .. })), "{sent:?}");
}

/// Without a pre-vote: the others would refuse it, having just heard of a leader.
#[test]
fn who_is_left_the_lead_campaigns_at_once_and_once() {
    let start = (Ballot::ZERO, Slot(3), Vec::new());
    let mut s1 = Replica::new(S1, vec![S1, S2, S3], Timeouts::default(), Time(0), 1, start);
    let ballot = Ballot::new(4, S2);
    let now = Time(1_000);
    let beat = Heartbeat { ballot, round: 1, decided: Slot(3), phase1_end: Slot::ZERO };
    step(&mut s1, now, |r, out| r.message(now, S2, Message::Heartbeat(beat), out));
    // Of a ballot that is not its own, or over, it says nothing.
    for (from, ballot) in [(S3, ballot), (S3, Ballot::new(3, S3))] {
        let sent = step(&mut s1, now, |r, out| r.message(now, from, Message::Resign { ballot }, out));
        assert!(!sent.iter().any(|(_, m)| matches!(m, Message::Prepare(_))), "{sent:?}");
    }
    let prepares = |s1: &mut Replica| {
        let sent = step(s1, now, |r, out| r.message(now, S2, Message::Resign { ballot }, out));
        let mine =
            sent.iter().filter(|(_, m)| matches!(m, Message::Prepare(p) if p.ballot == Ballot::new(5, S1)));
        mine.map(|(to, _)| *to).collect::<Vec<_>>()
    };
    assert_eq!(prepares(&mut s1), [S2, S3]);
    assert_eq!(prepares(&mut s1), [], "the same again comes in an older ballot");
}
