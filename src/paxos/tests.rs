//! Schedules that once broke the replica, told message by message.

mod alone;
mod handover;
mod rejoin;
mod repair;

use std::time::Duration;

use super::message::*;
use super::*;
use crate::config::Timeouts;
use crate::types::{Ballot, Incarnation, NodeId, Record, Slot, Time, Value};

/// Every server has its first disk.
const DISK: Incarnation = Incarnation(0);
const S1: NodeId = NodeId(1);
const S2: NodeId = NodeId(2);
const S3: NodeId = NodeId(3);

/// S1 of a cluster of three with slots 1 to 3 decided, campaigning in ballot 1.S1, which it has promised itself.
fn candidate() -> (Replica, Time) {
    let start = (Ballot::ZERO, Slot(3), Vec::new());
    let mut s1 = Replica::new(S1, vec![S1, S2, S3], Timeouts::default(), Time(0), 1, start);
    let now = campaign(&mut s1, 1, Ballot::ZERO, &[S2]);
    assert_eq!(s1.promised(), Ballot::new(1, S1));
    (s1, now)
}

/// Its deadline passes, and these others, which have promised so much, let it campaign. Returns when.
fn campaign(replica: &mut Replica, attempt: u64, promised: Ballot, by: &[NodeId]) -> Time {
    let now = replica.next_deadline();
    step(replica, now, |r, out| r.timer(now, 1, out));
    for from in by {
        let granted = PreVoteReply { attempt, granted: true, promised };
        step(replica, now, |r, out| r.message(now, *from, Message::PreVoteReply(granted), out));
    }
    now
}

/// The same with the promise of S2, which has the same slots decided: it leads.
fn leader() -> (Replica, Time) {
    let (mut s1, now) = candidate();
    let promise = Promise {
        ballot: Ballot::new(1, S1),
        decided: Slot(3),
        votes: Vec::new(),
        loss: None,
        incarnation: DISK,
    };
    step(&mut s1, now, |r, out| r.message(now, S2, Message::Promise(promise), out));
    assert!(s1.is_leader());
    (s1, now)
}

/// What a follower with its first disk and nothing amiss answers to a heartbeat.
fn echo(ballot: Ballot, round: u64, position: u64) -> Message {
    Message::HeartbeatReply(HeartbeatReply {
        ballot,
        round,
        position: Slot(position),
        room: None,
        doubts: Doubts::None,
        incarnation: DISK,
    })
}

/// Steps, and lets everything that waits for the disk happen at once.
fn step(
    replica: &mut Replica,
    now: Time,
    act: impl FnOnce(&mut Replica, &mut Output),
) -> Vec<(NodeId, Message)> {
    let mut out = Output::default();
    act(replica, &mut out);
    let mut sent = Vec::new();
    loop {
        replica.turn_end(now, &mut out);
        let Output { now: at_once, after, .. } = std::mem::take(&mut out);
        sent.extend(at_once);
        let (own, others): (Vec<_>, Vec<_>) = after.into_iter().partition(|(to, _)| *to == S1);
        sent.extend(others);
        if own.is_empty() {
            return sent;
        }
        for (from, message) in own {
            replica.message(now, from, message, &mut out);
        }
    }
}

/// A follower that restarts may know less as decided than before the crash, and then its votes of older ballots no
/// longer count towards its position (P2), although it acknowledged more. The leader never sent the rest again.
#[test]
fn a_follower_that_restarts_below_its_acknowledgement_is_sent_the_rest_again() {
    let (mut s1, now) = leader();
    let ballot = s1.promised();
    step(&mut s1, now, |r, out| _ = r.propose(Value::from_slice(b"x"), out));
    let accepted = Message::Accepted(Accepted { ballot, position: Slot(4), incarnation: DISK });
    step(&mut s1, now, |r, out| r.message(now, S2, accepted.clone(), out));
    let reply = |round, position| echo(ballot, round, position);
    step(&mut s1, now, |r, out| r.message(now, S3, reply(1, 3), out));
    step(&mut s1, now, |r, out| r.message(now, S3, accepted, out));
    // S3 restarts; its disk gives back slot 3 as a vote of an older ballot, above the decided slot 2.
    let round = {
        let mut out = Output::default();
        s1.begin_round(&mut out)
    };
    let sent = step(&mut s1, now, |r, out| r.message(now, S3, reply(round, 2), out));
    let again =
        sent.iter().any(|(to, m)| *to == S3 && (matches!(m, Message::Accept(a) if a.first == Slot(3))));
    // Slot 3 is decided and no longer in this leader's memory, so it is read from disk instead.
    let mut out = Output::default();
    s1.log_read(Time(0), Purpose::CatchUp(S3), Slot(3), vec![(Ballot::ZERO, Value::noop())], &mut out);
    let read =
        out.now.iter().any(|(to, m)| *to == S3 && matches!(m, Message::Accept(a) if a.first == Slot(3)));
    assert!(again || read, "S3 is never sent slot 3 again: {sent:?}");
}

/// An old proposal that comes again after its slots are known as decided was taken for one of slots whose values the disk has
/// lost, and what stood behind these slots in the same message was not taken.
#[test]
fn a_repetition_of_what_is_decided_brings_what_is_behind_it() {
    let start = (Ballot::ZERO, Slot(3), Vec::new());
    let mut s1 = Replica::new(S1, vec![S1, S2, S3], Timeouts::default(), Time(0), 1, start);
    let ballot = Ballot::new(1, S2);
    let mut accept = |decided, first, last| {
        let values = (first..=last).map(|_| Value::noop()).collect();
        let message = Message::Accept(Accept { ballot, decided: Slot(decided), first: Slot(first), values });
        let mut out = Output::default();
        s1.message(Time(1), S2, message, &mut out);
        (out, s1.decided(), s1.position())
    };
    let (_, decided, position) = accept(5, 4, 6);
    assert_eq!((decided, position), (Slot(5), Slot(6)));
    let (out, decided, position) = accept(3, 4, 8);
    assert_eq!((decided, position), (Slot(5), Slot(8)));
    assert!(!out.events.iter().any(|event| matches!(event, Event::Ignored { .. })), "{:?}", out.events);
}

/// Every repetition of an answer brought about another question, and its answer, repeated, two more: a network that
/// repeats one message in five ended in nothing but questions and answers.
#[test]
fn a_candidate_asks_once_for_what_it_lacks_however_often_it_is_answered() {
    let (mut s1, now) = candidate();
    let promise =
        Promise { ballot: s1.promised(), decided: Slot(9), votes: Vec::new(), loss: None, incarnation: DISK };
    let ask = |slot| vec![(S2, Message::Fetch(Fetch { from: Slot(slot) }))];
    let sent = step(&mut s1, now, |r, out| r.message(now, S2, Message::Promise(promise), out));
    assert_eq!(sent, ask(4));
    let entries = |first: u64| {
        let entries = (first..first + 2).map(|_| (Ballot::ZERO, Value::noop())).collect();
        Message::Entries(Entries { first: Slot(first), entries })
    };
    let sent = step(&mut s1, now, |r, out| r.message(now, S2, entries(4), out));
    assert_eq!(sent, ask(6));
    for first in [4, 3, 8] {
        let sent = step(&mut s1, now, |r, out| r.message(now, S2, entries(first), out));
        assert_eq!(sent, vec![], "what begins at {first} brings nothing after slot 5");
    }
    let sent = step(&mut s1, now, |r, out| r.message(now, S2, entries(6), out));
    assert_eq!(sent, ask(8));
}

/// The followers of a leader that died had never heard each other, and both told their clients that there is no quorum;
/// asked by a client, neither campaigned.
#[test]
fn a_follower_that_just_lost_its_leader_does_not_claim_that_there_is_no_quorum() {
    let timeouts = Timeouts::default();
    let start = (Ballot::ZERO, Slot::ZERO, Vec::new());
    let mut s2 = Replica::new(S2, vec![S1, S2, S3], timeouts, Time(0), 1, start);
    let last = Time(10_000_000);
    let heartbeat =
        Heartbeat { ballot: Ballot::new(1, S1), round: 1, decided: Slot::ZERO, phase1_end: Slot::ZERO };
    step(&mut s2, last, |r, out| r.message(last, S1, Message::Heartbeat(heartbeat), out));
    let silent = last + timeouts.election();
    assert_eq!(s2.standing(silent), Standing::Searching);
    step(&mut s2, silent, |r, out| r.campaign_if_leaderless(silent, out));
    let unheard = last + timeouts.election() * 2;
    assert_eq!(s2.standing(unheard), Standing::NoQuorum, "it asked, and nobody answered");
}

/// S1 leads, and both followers are gone. Somebody reads from it every 20 ms, and each round for those reads put the next
/// heartbeat off, at which alone the leader looks whether it hears anybody: it led nobody for ever, and its clients
/// waited for a round that could not come back.
#[test]
fn a_leader_that_is_read_from_all_the_time_notices_that_nobody_hears_it() {
    let (mut s1, start) = leader();
    let timeouts = Timeouts::default();
    let (pause, mut now) = (Duration::from_millis(20), start);
    assert!(pause < timeouts.heartbeat());
    while s1.is_leader() {
        assert!(now.since(start) <= timeouts.election() + timeouts.heartbeat() + pause, "it still leads");
        now = now + pause;
        if s1.next_deadline() <= now {
            step(&mut s1, now, |r, out| r.timer(now, 1, out));
        }
        if s1.is_leader() {
            step(&mut s1, now, |r, out| _ = r.begin_round(out));
        }
    }
    assert!(now.since(start) >= timeouts.election(), "it was patient");
}

/// S2 hears from its leader that slot 4 is decided, which only a `Decided` record can say for certain: headers of other
/// records vouch for the turn before theirs. Before it is due, S3 asks for a promise. The record of that promise passed
/// for what was wanted, and the decided slot was not written at all while nothing else was.
#[test]
fn a_promise_does_not_stand_in_for_the_record_of_the_decided_slot() {
    let start = (Ballot::ZERO, Slot(3), Vec::new());
    let mut s2 = Replica::new(S2, vec![S1, S2, S3], Timeouts::default(), Time(0), 1, start);
    let (first, now) = (Ballot::new(1, S1), Time(10_000_000));
    let mut records = Vec::new();
    let mut turn = |now: Time, act: &mut dyn FnMut(&mut Replica, &mut Output)| {
        let mut out = Output::default();
        act(&mut s2, &mut out);
        s2.turn_end(now, &mut out);
        records.push(out.records);
        s2.next_deadline()
    };
    let accept = Accept { ballot: first, decided: Slot(3), first: Slot(4), values: vec![Value::noop()] };
    let told = Heartbeat { ballot: first, round: 1, decided: Slot(4), phase1_end: Slot::ZERO };
    let prepare = Prepare { ballot: Ballot::new(2, S3), decided: Slot(3) };
    turn(now, &mut |r, out| r.message(now, S1, Message::Accept(accept.clone()), out));
    let due = turn(now, &mut |r, out| r.message(now, S1, Message::Heartbeat(told.clone()), out));
    assert!(due <= now + Duration::from_millis(100), "the decided slot is to be written soon");
    let still_due = turn(now, &mut |r, out| r.message(now, S3, Message::Prepare(prepare.clone()), out));
    assert_eq!(still_due, due);
    turn(due, &mut |r, out| r.timer(due, 1, out));
    assert_eq!(s2.decided(), Slot(4));
    assert_eq!(records[2], [Record::Promise(Ballot::new(2, S3))]);
    assert_eq!(records[3], [Record::Decided(Slot(4))]);
    assert!(s2.next_deadline() > due, "once is enough");
}

/// With a round trip longer than the pause between two questions every answer came to an earlier question, and counted for
/// nothing: nobody was ever elected.
#[test]
fn a_pre_vote_is_won_however_long_its_answers_take() {
    for round_trip in [1, 90, 220, 1000, 2500] {
        let timeouts = Timeouts { election_timeout_ms: 3000, ..Timeouts::default() };
        let mut s1 =
            Replica::new(S1, vec![S1, S2, S3], timeouts, Time(0), 1, (Ballot::ZERO, Slot(3), Vec::new()));
        let mut due: Vec<(Time, u64)> = Vec::new();
        while s1.promised() == Ballot::ZERO {
            let answer = due.first().map_or(Time(u64::MAX), |(at, _)| *at);
            let now = answer.min(s1.next_deadline());
            assert!(now < Time(20_000_000), "nobody is elected with a round trip of {round_trip} ms");
            let sent = if answer <= now {
                let (_, attempt) = due.remove(0);
                let granted = PreVoteReply { attempt, granted: true, promised: Ballot::ZERO };
                step(&mut s1, now, |r, out| r.message(now, S2, Message::PreVoteReply(granted), out))
            } else {
                step(&mut s1, now, |r, out| r.timer(now, 1, out))
            };
            due.extend(sent.iter().filter_map(|(to, message)| match message {
                Message::PreVote(m) if *to == S2 => {
                    Some((now + Duration::from_millis(round_trip), m.attempt))
                }
                _ => None,
            }));
        }
    }
}

/// What was granted long ago, or taken back, is no grant.
#[test]
fn a_pre_vote_counts_fresh_grants_only() {
    let timeouts = Timeouts::default();
    let cluster: Vec<NodeId> = (1..=5).map(NodeId).collect();
    let mut s1 = Replica::new(S1, cluster, timeouts, Time(0), 1, (Ballot::ZERO, Slot(3), Vec::new()));
    let mut now = s1.next_deadline();
    step(&mut s1, now, |r, out| r.timer(now, 1, out));
    let reply = |s1: &mut Replica, now, from, attempt, granted| {
        let reply = PreVoteReply { attempt, granted, promised: Ballot::ZERO };
        step(s1, now, |r, out| r.message(now, from, Message::PreVoteReply(reply), out));
    };
    reply(&mut s1, now, S2, 1, true);
    reply(&mut s1, now, S2, 1, false);
    reply(&mut s1, now, S3, 1, true);
    reply(&mut s1, now, NodeId(4), 2, true);
    assert_eq!(s1.promised(), Ballot::ZERO, "S3 alone agrees; nobody was asked twice yet");
    now = now + timeouts.election() + Duration::from_micros(1);
    step(&mut s1, now, |r, out| r.timer(now, 1, out));
    reply(&mut s1, now, S2, 2, true);
    assert_eq!(s1.promised(), Ballot::ZERO, "S3 granted longer ago than an election time-out");
    reply(&mut s1, now, NodeId(4), 1, true);
    assert_eq!(s1.promised(), Ballot::ZERO, "what S4 grants was asked too long ago");
    reply(&mut s1, now, NodeId(4), 2, true);
    assert_eq!(s1.promised(), Ballot::new(1, S1));
}

/// Two servers that each heard a client right behind the other's prepare campaigned at once, in turn, and decided nothing.
#[test]
fn a_client_does_not_make_a_server_campaign_against_a_candidate() {
    let timeouts = Timeouts::default();
    let start = (Ballot::ZERO, Slot(3), Vec::new());
    let mut s1 = Replica::new(S1, vec![S1, S2, S3], timeouts, Time(0), 1, start);
    let now = Time(10_000_000);
    let asks = |s1: &mut Replica, now| {
        let sent = step(s1, now, |r, out| r.campaign_if_leaderless(now, out));
        sent.iter().any(|(_, message)| matches!(message, Message::PreVote(_)))
    };
    let prepare = Prepare { ballot: Ballot::new(1, S2), decided: Slot(3) };
    step(&mut s1, now, |r, out| r.message(now, S2, Message::Prepare(prepare), out));
    assert!(!asks(&mut s1, now));
    let later = now + timeouts.election();
    assert!(!asks(&mut s1, Time(later.0 - 1)));
    assert!(asks(&mut s1, later), "the candidate had its time");
}

/// What a follower thinks of its leader lasts exactly an election time-out; a leader that asks its own followers because
/// it was refused for a higher ballot gets their grant.
#[test]
fn a_pre_vote_is_granted_to_the_leader_and_to_others_only_when_it_is_silent() {
    let timeouts = Timeouts::default();
    let start = (Ballot::ZERO, Slot(3), Vec::new());
    let mut s1 = Replica::new(S1, vec![S1, S2, S3], timeouts, Time(0), 1, start);
    let heard = Time(10_000_000);
    let heartbeat =
        Heartbeat { ballot: Ballot::new(1, S2), round: 1, decided: Slot(3), phase1_end: Slot::ZERO };
    step(&mut s1, heard, |r, out| r.message(heard, S2, Message::Heartbeat(heartbeat), out));
    let mut grants = |now, from| {
        let ask = Message::PreVote(PreVote { attempt: 1, has_room: true });
        let sent = step(&mut s1, now, |r, out| r.message(now, from, ask, out));
        match &sent[..] {
            [(to, Message::PreVoteReply(reply))] if *to == from => reply.granted,
            other => panic!("one answer is expected, not {other:?}"),
        }
    };
    let end = heard + timeouts.election();
    for now in [heard, Time(end.0 - 1)] {
        assert!(grants(now, S2) && !grants(now, S3), "at {now:?}");
    }
    assert!(grants(end, S3));
}

/// What a follower lacks comes from disk piece by piece, each after the last one that was sent.
#[test]
fn entries_from_disk_follow_each_other() {
    let (mut s1, now) = leader();
    let ballot = s1.promised();
    let reply = |position| echo(ballot, 1, position);
    let mut asked = |act: &mut dyn FnMut(&mut Replica, &mut Output)| {
        let mut out = Output::default();
        act(&mut s1, &mut out);
        let first = out.reads.first().map(|read| read.from);
        (first, out.gone)
    };
    assert_eq!(asked(&mut |r, out| r.message(now, S3, reply(0), out)).0, Some(Slot(1)));
    let entries = vec![(Ballot::ZERO, Value::noop()); 2];
    asked(&mut |r, out| r.log_read(Time(0), Purpose::CatchUp(S3), Slot(1), entries.clone(), out));
    assert_eq!(asked(&mut |r, out| r.message(now, S3, reply(2), out)).0, Some(Slot(3)));
    // They are gone, and a snapshot is due: once for each time that the follower says where it stands.
    let gone = asked(&mut |r, out| r.log_read(Time(0), Purpose::CatchUp(S3), Slot(3), Vec::new(), out));
    assert_eq!(gone, (None, vec![S3]));
    assert_eq!(asked(&mut |r, out| r.turn_end(now, out)).0, None);
    assert_eq!(asked(&mut |r, out| r.message(now, S3, reply(2), out)).0, Some(Slot(3)));
}

/// P2: a snapshot takes no vote above its slot away, and no promise.
#[test]
fn a_snapshot_leaves_the_votes_above_it() {
    let votes = (4..8).map(|n| (Ballot::new(1, S2), Value::from_slice(&[n]))).collect();
    let start = (Ballot::new(2, S3), Slot(3), votes);
    let mut s1 = Replica::new(S1, vec![S1, S2, S3], Timeouts::default(), Time(0), 1, start);
    step(&mut s1, Time(1), |r, out| r.install(Time(1), Slot(5), out));
    assert_eq!((s1.promised(), s1.decided(), s1.position()), (Ballot::new(2, S3), Slot(5), Slot(5)));
    assert_eq!(s1.entry(Slot(5)), None);
    assert_eq!(s1.entry(Slot(6)), Some(&(Ballot::new(1, S2), Value::from_slice(&[6]))));
    assert_eq!(s1.entry(Slot(7)), Some(&(Ballot::new(1, S2), Value::from_slice(&[7]))));
    step(&mut s1, Time(2), |r, out| r.install(Time(2), Slot(100), out));
    let accept = Accept {
        ballot: Ballot::new(2, S3),
        decided: Slot(100),
        first: Slot(101),
        values: vec![Value::noop()],
    };
    step(&mut s1, Time(3), |r, out| r.message(Time(3), S3, Message::Accept(accept), out));
    assert_eq!(s1.position(), Slot(101), "entries follow the snapshot");
}

/// In a cluster of five, one that follows a leader of the past may be sent a snapshot by others, who have long gone on.
#[test]
fn a_leader_hears_of_slots_that_a_later_one_decided() {
    let (mut s1, now) = leader();
    let ballot = s1.promised();
    let beyond = HeartbeatReply {
        ballot,
        round: 1,
        position: Slot(100),
        room: None,
        doubts: Doubts::None,
        incarnation: DISK,
    };
    step(&mut s1, now, |r, out| r.message(now, S2, Message::HeartbeatReply(beyond), out));
    assert!(!s1.is_leader() && s1.decided() < Slot(100));
}
