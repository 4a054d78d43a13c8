//! Servers whose disk was replaced (S3), and what their lost disks had vouched for.

use super::*;
use crate::paxos::{Membership, Names};
use crate::types::Rejoined;

const NEW: Incarnation = Incarnation(9);
const S4: NodeId = NodeId(4);
const S5: NodeId = NodeId(5);

/// A value of two bytes lets the server of the first one in, in a ballot of the second one's round.
fn names(value: &Value) -> Vec<(NodeId, Rejoined)> {
    match value.0[..] {
        [server, round] => {
            let ballot = Ballot::new(u64::from(round), S2);
            vec![(NodeId(u16::from(server)), Rejoined { incarnation: NEW, ballot })]
        }
        _ => Vec::new(),
    }
}

fn replica(founder: bool, servers: &[NodeId]) -> Replica {
    let start = (Ballot::ZERO, Slot(3), Vec::new());
    let disk = if founder { DISK } else { NEW };
    Replica::new(S1, servers.to_vec(), Timeouts::default(), Time(0), 1, start)
        .with_membership(Membership::new(S1, disk, founder, Names(names)), [])
}

/// It may have promised and accepted anything before. So it says nothing that anybody counts, and asks for what is decided.
#[test]
fn a_learner_answers_nothing_that_counts() {
    let mut s1 = replica(false, &[S1, S2, S3]);
    let ballot = Ballot::new(5, S2);
    let now = s1.next_deadline();
    let accept = Accept { ballot, decided: Slot(4), first: Slot(4), values: vec![Value::from_slice(&[1])] };
    for message in [
        Message::Prepare(Prepare { ballot, decided: Slot(3) }),
        Message::Accept(accept),
        Message::PreVote(PreVote { attempt: 1, has_room: true }),
    ] {
        let sent = step(&mut s1, now, |r, out| r.message(now, S2, message, out));
        assert_eq!(sent, []);
    }
    assert_eq!((s1.decided(), s1.position()), (Slot(3), Slot(3)));
    let beat = Heartbeat { ballot, round: 1, decided: Slot(4), phase1_end: Slot::ZERO };
    let sent = step(&mut s1, now, |r, out| r.message(now, S2, Message::Heartbeat(beat), out));
    let learner = Message::Learner(Learner { ballot, decided: Slot(3), incarnation: NEW });
    assert_eq!(sent, [(S2, learner), (S2, Message::Fetch(Fetch { from: Slot(4) }))]);
    for n in 0..20 {
        let now = s1.next_deadline();
        let sent = step(&mut s1, now, |r, out| r.timer(now, n, out));
        let fetch = |peer| (peer, Message::Fetch(Fetch { from: Slot(4) }));
        assert_eq!(sent, [fetch(S2), fetch(S3)], "it never campaigns");
    }
}

/// Its old disk may have promised as much as the ballot in which it is let in: a lower one would let two values be chosen.
#[test]
fn a_learner_that_is_let_in_promises_what_the_entry_names() {
    let mut s1 = replica(false, &[S1, S2, S3]);
    let now = s1.next_deadline();
    let entry = |round| vec![(Ballot::new(2, S2), Value::from_slice(&[1, round]))];
    let mut out = Output::default();
    s1.message(now, S2, Message::Entries(Entries { first: Slot(4), entries: entry(7) }), &mut out);
    assert!(s1.membership().votes());
    assert_eq!((s1.promised(), s1.decided()), (Ballot::new(7, S2), Slot(4)));
    assert!(out.records.contains(&Record::Promise(Ballot::new(7, S2))));
    let prepare = Prepare { ballot: Ballot::new(8, S2), decided: Slot(4) };
    let sent = step(&mut s1, now, |r, out| r.message(now, S2, Message::Prepare(prepare), out));
    assert!(matches!(&sent[..], [(S2, Message::Promise(m))] if m.incarnation == NEW));
    // The same after a restart that found the entry, and not the promise.
    let member = Rejoined { incarnation: NEW, ballot: Ballot::new(7, S2) };
    let mut s1 =
        Replica::new(S1, vec![S1, S2, S3], Timeouts::default(), Time(0), 1, (Ballot::ZERO, Slot(4), vec![]))
            .with_membership(Membership::new(S1, NEW, false, Names(names)), [(S1, member)]);
    assert_eq!(s1.promised(), Ballot::new(7, S2));
    let mut out = Output::default();
    s1.turn_end(now, &mut out);
    assert!(out.records.contains(&Record::Promise(Ballot::new(7, S2))));
}

/// A snapshot lets it in, and the log has no room for the promise: the entry stands for it until there is some.
#[test]
fn a_full_disk_puts_off_the_record_of_that_promise_and_not_the_promise() {
    let mut s1 = replica(false, &[S1, S2, S3]);
    let now = s1.next_deadline();
    let mut out = Output::default();
    s1.set_room(now, Some(10), &mut out);
    s1.let_in(now, S1, Rejoined { incarnation: NEW, ballot: Ballot::new(7, S2) }, &mut out);
    s1.turn_end(now, &mut out);
    assert_eq!((s1.promised(), &out.records[..]), (Ballot::new(7, S2), &[][..]));
    s1.set_room(now, None, &mut out);
    s1.turn_end(now, &mut out);
    s1.turn_end(now, &mut out);
    assert_eq!(out.records, [Record::Promise(Ballot::new(7, S2))]);
}

/// S3 promised, lost its disk, and is being let in with a new one: in the lower ballot, by a majority that this candidate's
/// quorum meets in S2 alone. S2 says so among its votes, and the old promise no longer counts.
#[test]
fn a_candidate_finds_among_the_votes_whose_disk_was_replaced() {
    let mut s1 = replica(true, &[S1, S2, S3, S4, S5]);
    let now = campaign(&mut s1, 1, Ballot::new(1, S5), &[S2, S3]);
    let ballot = s1.promised();
    let promise = |votes, incarnation| {
        Message::Promise(Promise { ballot, decided: Slot(3), votes, loss: None, incarnation })
    };
    let vote = vec![(Ballot::new(1, S5), Value::from_slice(&[3, 1]))];
    step(&mut s1, now, |r, out| r.message(now, S2, promise(vote, DISK), out));
    step(&mut s1, now, |r, out| r.message(now, S3, promise(Vec::new(), DISK), out));
    assert!(!s1.is_leader(), "three of five have promised, and one of them has forgotten it");
    step(&mut s1, now, |r, out| r.message(now, S4, promise(Vec::new(), DISK), out));
    assert!(s1.is_leader());
    // The entry is proposed again. Once it is decided, what the lost disk vouched for is not heard at all.
    for from in [S2, S4] {
        let accepted = Accepted { ballot, position: Slot(4), incarnation: DISK };
        step(&mut s1, now, |r, out| r.message(now, from, Message::Accepted(accepted), out));
    }
    assert_eq!(s1.decided(), Slot(4));
    let slot = s1.propose(Value::from_slice(&[0]), &mut Output::default());
    let mut acknowledge = |from, incarnation| {
        let accepted = Accepted { ballot, position: slot, incarnation };
        step(&mut s1, now, |r, out| r.message(now, from, Message::Accepted(accepted), out));
        s1.decided()
    };
    assert_eq!(acknowledge(S3, DISK), Slot(4));
    assert_eq!(acknowledge(S4, DISK), Slot(4), "two of five");
    assert_eq!(acknowledge(S3, NEW), slot);
}

/// A vote may be for letting a disk in that was lost since, and another one let in: what is decided meanwhile outdoes it.
#[test]
fn a_candidate_goes_by_what_is_decided_and_not_by_the_votes_before() {
    fn names(value: &Value) -> Vec<(NodeId, Rejoined)> {
        let [server, disk] = value.0[..] else { return Vec::new() };
        let (incarnation, ballot) = (Incarnation(u128::from(disk)), Ballot::new(1, S5));
        vec![(NodeId(u16::from(server)), Rejoined { incarnation, ballot })]
    }
    let entry = |disk: u8| (Ballot::new(1, S5), Value::from_slice(&[3, disk]));
    let start = (Ballot::new(1, S5), Slot(3), vec![entry(7)]);
    let mut s1 = Replica::new(S1, vec![S1, S2, S3, S4, S5], Timeouts::default(), Time(0), 1, start)
        .with_membership(Membership::new(S1, DISK, true, Names(names)), []);
    let now = campaign(&mut s1, 1, Ballot::new(1, S5), &[S2, S3]);
    let ballot = s1.promised();
    for (from, decided, disk) in [(S3, 3, Incarnation(7)), (S2, 5, DISK)] {
        let promise =
            Promise { ballot, decided: Slot(decided), votes: vec![], loss: None, incarnation: disk };
        step(&mut s1, now, |r, out| r.message(now, from, Message::Promise(promise), out));
    }
    let entries = Message::Entries(Entries { first: Slot(4), entries: vec![entry(7), entry(8)] });
    step(&mut s1, now, |r, out| r.message(now, S2, entries, out));
    assert_eq!((s1.decided(), s1.is_leader()), (Slot(5), false), "the promise of a lost disk");
    let promise =
        Promise { ballot, decided: Slot(5), votes: vec![], loss: None, incarnation: Incarnation(8) };
    step(&mut s1, now, |r, out| r.message(now, S3, Message::Promise(promise), out));
    assert!(s1.is_leader(), "the new disk has promised");
}
