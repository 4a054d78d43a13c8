//! Servers whose log was damaged (S2): what they vouch for, and until when they do not.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::paxos::repair::choose;
use crate::paxos::replica::RENEWS;
use crate::types::{Loss, Vote};

fn value(byte: u8) -> Value {
    Value::from_slice(&[byte])
}

fn cast(round: u64, byte: u8) -> Vote {
    Vote::Cast(Ballot::new(round, S1), value(byte))
}

/// The promise of a server that knows slots 1 to `known` as decided.
fn promise(known: u64, votes: &[(u64, Vote)], hidden: u64) -> Promise {
    let votes: BTreeMap<Slot, Vote> = votes.iter().map(|(slot, vote)| (Slot(*slot), vote.clone())).collect();
    let loss = Some(Loss { known: Slot(known), votes, hidden: Slot(hidden), gaps: Vec::new() });
    Promise { ballot: Ballot::new(9, S1), decided: Slot(3), votes: Vec::new(), loss, incarnation: DISK }
}

fn sound(votes: &[u8]) -> Promise {
    let votes = votes.iter().map(|byte| (Ballot::new(2, S1), value(*byte))).collect();
    Promise { ballot: Ballot::new(9, S1), decided: Slot(3), votes, loss: None, incarnation: DISK }
}

/// What a candidate of three that knows slots 1 to 3 as decided proposes, or the slot at which it must wait.
fn chosen(promises: &[Promise]) -> Result<Vec<(u64, Value)>, Slot> {
    let promises = [S1, S2, S3].into_iter().zip(promises.iter().cloned()).collect();
    let (votes, doubtful) = choose(&promises, Slot(3), 2);
    doubtful.map_or(Ok(()), Err)?;
    Ok(votes.into_iter().map(|(slot, (_, value))| (slot.0, value)).collect())
}

#[test]
fn every_open_slot_needs_a_majority_that_vouches() {
    let bodiless = Vote::Lost(Some(Ballot::new(2, S1)));
    let damaged = |vote: &Vote| promise(3, &[(4, vote.clone())], 0);
    // Somebody has the value of the vote whose own is lost.
    assert_eq!(chosen(&[damaged(&bodiless), sound(&[7])]), Ok(vec![(4, value(7))]));
    assert_eq!(chosen(&[damaged(&bodiless), damaged(&bodiless), sound(&[7])]), Ok(vec![(4, value(7))]));
    // Nobody has: it was not chosen if a majority never cast it, and that must be heard.
    assert_eq!(chosen(&[damaged(&bodiless), sound(&[])]), Err(Slot(4)));
    assert_eq!(chosen(&[damaged(&bodiless), sound(&[]), sound(&[])]), Ok(vec![]));
    // A lower vote tells nothing of a higher one.
    let higher = Vote::Lost(Some(Ballot::new(3, S1)));
    assert_eq!(chosen(&[damaged(&higher), sound(&[7])]), Err(Slot(4)));
    assert_eq!(chosen(&[damaged(&higher), sound(&[7]), sound(&[7])]), Ok(vec![(4, value(7))]));
    // Whether there was a vote at all is forgotten: for a slot in the list, or for all up to one.
    for hidden in [damaged(&Vote::Lost(None)), promise(3, &[], 4)] {
        assert_eq!(chosen(&[hidden.clone(), sound(&[7])]), Err(Slot(4)));
        assert_eq!(chosen(&[hidden.clone(), sound(&[7]), sound(&[7])]), Ok(vec![(4, value(7))]));
    }
    // Votes that it remembers count, behind a doubt too.
    let behind = promise(3, &[(4, Vote::Lost(None)), (5, cast(2, 8))], 0);
    assert_eq!(chosen(&[behind, sound(&[7]), sound(&[7])]), Ok(vec![(4, value(7)), (5, value(8))]));
    // It says that slot 5 is decided, and tells nothing of the votes up to there.
    assert_eq!(chosen(&[promise(5, &[], 0), sound(&[])]), Err(Slot(4)));
    assert_eq!(
        chosen(&[promise(5, &[], 0), sound(&[7, 8]), sound(&[])]),
        Ok(vec![(4, value(7)), (5, value(8))])
    );
    // Two forgot different slots.
    let [one, two] =
        [4, 5].map(|slot| promise(3, &[(slot, Vote::Lost(None)), (9 - slot, cast(2, 9 - slot as u8))], 0));
    assert_eq!(chosen(&[one, two, sound(&[])]), Ok(vec![(4, value(4)), (5, value(5))]));
}

/// S1 of three, which had promised 2.S2, and knows that slot 5 is decided; it lost the value of slot 4.
fn damaged() -> Replica {
    let loss = Loss {
        known: Slot(5),
        votes: BTreeMap::from([(Slot(6), cast(1, 6))]),
        hidden: Slot(8),
        gaps: Vec::new(),
    };
    let start = (Ballot::new(2, S2), Slot(3), Vec::new());
    Replica::new(S1, vec![S1, S2, S3], Timeouts::default(), Time(0), 1, start).with_loss(Some(loss))
}

/// The value comes from the leader, what stands behind it from the own log; doubts end in the next ballot, not in this one.
#[test]
fn a_damaged_server_vouches_again_in_a_later_ballot() {
    let mut s1 = damaged();
    let now = Time(1_000_000);
    let mut turn = |message: Message| {
        let mut out = Output::default();
        s1.message(now, S2, message, &mut out);
        (out, s1.clone())
    };
    let beat = |round: u64, phase1_end: u64| {
        let ballot = Ballot::new(round, S2);
        Message::Heartbeat(Heartbeat { ballot, round: 1, decided: Slot(6), phase1_end: Slot(phase1_end) })
    };
    let accept = |round: u64, decided: u64, first: u64, values: &[u8]| {
        let values = values.iter().map(|byte| value(*byte)).collect();
        let (ballot, decided) = (Ballot::new(round, S2), Slot(decided));
        Message::Accept(Accept { ballot, decided, first: Slot(first), values })
    };
    // A leader that does not know the slot as decided may be one whose ballot is over: it lost to that in which the slot
    // was decided, of which this server had only heard.
    let (out, s) = turn(accept(2, 3, 4, &[9]));
    assert_eq!((s.decided(), s.position(), out.records), (Slot(3), Slot(3), Vec::new()));
    // As soon as it has the value, it reads on in its own log.
    let (out, s) = turn(accept(2, 4, 4, &[4]));
    assert_eq!(s.decided(), Slot(4));
    let read =
        ReadLog { purpose: Purpose::Salvage, from: Slot(5), to: Slot(5), max_bytes: s.limits.catch_up_bytes };
    assert_eq!(out.reads, [read]);
    let mut out = Output::default();
    let mut s1 = s;
    s1.log_read(now, Purpose::Salvage, Slot(5), vec![(Ballot::new(1, S2), value(5))], &mut out);
    assert_eq!((s1.decided(), s1.position(), s1.is_repairing()), (Slot(5), Slot(5), true));
    // Others are heard before it goes on.
    let due = s1.next_deadline();
    assert!(due > now && due < now + Duration::from_millis(1), "{due:?}");
    s1.timer(due, 1, &mut out);
    assert_eq!(s1.entry(Slot(6)), Some(&(Ballot::new(1, S1), value(6))));
    let mut turn = |message: Message| {
        let mut out = Output::default();
        s1.message(now, S2, message, &mut out);
        (out.records, s1.loss())
    };
    // It may have voted for slot 7 in this very ballot.
    let (records, loss) = turn(beat(2, 0));
    assert!(!records.iter().any(|record| matches!(record, Record::Vouch(_))));
    assert_eq!(loss.map(|loss| loss.hidden), Some(Slot(8)));
    // In the next one it has to have what phase 1 brought up.
    let (records, loss) = turn(beat(3, 6));
    assert!(!records.iter().any(|record| matches!(record, Record::Vouch(_))) && loss.is_some());
    turn(accept(3, 3, 6, &[6]));
    let (records, loss) = turn(beat(3, 6));
    assert_eq!((records, loss), (vec![Record::Vouch(Slot(6))], None));
}

/// Doubts end slot by slot, too, as the server votes anew; unless that is written down, its next start has them again.
#[test]
fn a_server_that_voted_anew_for_every_doubtful_slot_says_so_on_disk() {
    let (mut s1, mut records) = (damaged(), Vec::new());
    for (decided, first, byte) in [(4, 4, 4), (5, 5, 5), (5, 6, 6), (5, 7, 7), (5, 8, 8)] {
        assert!(s1.is_repairing() && !records.iter().any(|record| matches!(record, Record::Vouch(_))));
        let (ballot, decided, values) = (Ballot::new(2, S2), Slot(decided), vec![value(byte)]);
        let mut out = Output::default();
        let accept = Accept { ballot, decided, first: Slot(first), values };
        s1.message(Time(0), S2, Message::Accept(accept), &mut out);
        records = out.records;
    }
    assert_eq!((records.last(), s1.is_repairing()), (Some(&Record::Vouch(Slot(8))), false));
}

/// S1 leads before it has read its own log: two others, which know nothing of what it lost, vouched for the slots. What it
/// reads then decides nothing, since no majority has accepted it in this ballot; once it leads no more, it reads on.
#[test]
fn a_leader_decides_nothing_by_its_own_old_log() {
    let (mut s1, ballot) = (damaged(), Ballot::new(3, S1));
    let now = campaign(&mut s1, 1, Ballot::ZERO, &[S2]);
    for from in [S2, S3] {
        let promise = Promise { ballot, ..sound(&[4, 5]) };
        step(&mut s1, now, |r, out| r.message(now, from, Message::Promise(promise), out));
    }
    assert!(s1.is_leader() && s1.decided() == Slot(3) && s1.known() == Slot(5));
    let own = [4, 5].map(|byte| (Ballot::new(1, S2), value(byte))).to_vec();
    step(&mut s1, now, |r, out| r.log_read(now, Purpose::Salvage, Slot(4), own.clone(), out));
    assert_eq!(s1.decided(), Slot(3));
    step(&mut s1, now, |r, out| r.step_down(now, "it is over", out));
    let mut out = Output::default();
    s1.timer(s1.next_deadline(), 1, &mut out);
    let read = |read: &ReadLog| (read.purpose == Purpose::Salvage).then_some(read.from);
    assert_eq!(out.reads.iter().filter_map(read).next(), Some(Slot(4)));
    s1.log_read(now, Purpose::Salvage, Slot(4), own, &mut out);
    assert_eq!(s1.decided(), Slot(5));
}

/// Votes that it may have forgotten matter until the next ballot. A leader begins one as soon as it hears of them, if a
/// majority can vouch without that server; otherwise it had better go on, since nobody could lead after it.
#[test]
fn a_leader_begins_a_new_ballot_for_who_forgot_votes() {
    let (mut s2, now) = (damaged(), Time(1_000_000));
    let mut out = Output::default();
    let beat = Heartbeat { ballot: Ballot::new(2, S2), round: 1, decided: Slot(3), phase1_end: Slot(0) };
    s2.message(now, S2, Message::Heartbeat(beat), &mut out);
    let said = out.after.iter().find_map(|(_, message)| match message {
        Message::HeartbeatReply(reply) => Some(reply.doubts),
        _ => None,
    });
    assert_eq!(said, Some(Doubts::Standing));

    let third = [(Some(Doubts::None), true), (Some(Doubts::Ending), false), (None, false)];
    for (third, renews) in third {
        let (mut leader, now) = leader();
        let (ballot, later) = (leader.promised(), now + Duration::from_secs(5));
        let mut out = Output::default();
        for (from, doubts) in [(S2, Some(Doubts::Standing)), (S3, third)] {
            if let Some(doubts) = doubts {
                let reply = HeartbeatReply {
                    ballot,
                    round: 1,
                    position: Slot(0),
                    room: None,
                    doubts,
                    incarnation: DISK,
                };
                leader.message(later, from, Message::HeartbeatReply(reply), &mut out);
            }
        }
        leader.timer(later, 7, &mut out);
        let why = out
            .events
            .iter()
            .any(|event| matches!(event, Event::LostLeadership { why, .. } if *why == RENEWS));
        assert_eq!((why, leader.is_leader()), (renews, !renews));
    }
}

/// A value that cannot be read back comes from another server, and is written once more where it will be found.
#[test]
fn a_value_that_goes_bad_is_written_again() {
    let values = [1, 2, 3].map(|byte| (Ballot::new(1, S2), value(byte)));
    let start = (Ballot::new(2, S2), Slot(3), Vec::new());
    let mut s1 = Replica::new(S1, vec![S1, S2, S3], Timeouts::default(), Time(0), 1, start);
    let mut out = Output::default();
    s1.log_unreadable(Time(0), Purpose::Fetch(S3), Slot(2), &mut out);
    let asked: Vec<_> = out.now.iter().map(|(to, message)| (*to, message.clone())).collect();
    let fetch = Message::Fetch(Fetch { from: Slot(2) });
    assert_eq!((asked, out.gone), (vec![(S2, fetch.clone()), (S3, fetch)], vec![S3]));
    // Who cannot read it either asks in turn, and is answered so, but not without end.
    let mut out = Output::default();
    s1.log_unreadable(Time(1), Purpose::Fetch(S3), Slot(2), &mut out);
    assert!(out.now.is_empty());
    for (first, rewritten) in [(1, false), (2, true), (2, false)] {
        let mut out = Output::default();
        let entries = values[first as usize - 1..].to_vec();
        s1.message(Time(1), S2, Message::Entries(Entries { first: Slot(first), entries }), &mut out);
        let (ballot, value) = values[1].clone();
        let expected = Record::Learn { slot: Slot(2), ballot, value };
        assert_eq!(out.records, if rewritten { vec![expected] } else { vec![] }, "from slot {first}");
    }
}

/// A candidate asks everybody for a lost value that is decided: one that waits to be let in promises nothing, and may be
/// the only one who has it (S3).
#[test]
fn a_candidate_asks_also_those_who_promised_nothing() {
    let (mut s1, now) = candidate();
    let loss = Some(Loss { known: Slot(5), votes: BTreeMap::new(), hidden: Slot::ZERO, gaps: Vec::new() });
    let promise = Promise { ballot: Ballot::new(1, S1), loss, ..sound(&[]) };
    let sent = step(&mut s1, now, |r, out| r.message(now, S2, Message::Promise(promise), out));
    let fetch = Message::Fetch(Fetch { from: Slot(4) });
    assert_eq!(sent, [(S2, fetch.clone()), (S3, fetch)]);
    assert!(!s1.is_leader());
}

/// A candidate that nobody lets lead learns what was chosen before its campaign, from phase 1; not what somebody calls decided
/// who may have heard that since, from a higher ballot in which another value was chosen.
#[test]
fn phase_1_tells_only_what_was_decided_before_it() {
    let mut s1 = Replica::new(
        S1,
        (1..=5).map(NodeId).collect(),
        Timeouts::default(),
        Time(0),
        1,
        (Ballot::new(2, S3), Slot(4), Vec::new()),
    )
    .with_loss(Some(Loss {
        known: Slot(4),
        votes: BTreeMap::from([(Slot(5), Vote::Cast(Ballot::new(2, S3), value(77)))]),
        hidden: Slot(6),
        gaps: Vec::new(),
    }));
    for (round, decided) in [(3, Slot(4)), (4, Slot(5))] {
        let now = campaign(&mut s1, round - 2, Ballot::ZERO, &[S2, S3]);
        let ballot = Ballot::new(round, S1);
        assert_eq!(s1.promised(), ballot);
        // S2 lost the value of slot 5, and may have voted for slot 6; S3 voted for slot 5 as S1 did, and S4 for nothing.
        let loss = Loss { known: Slot(5), votes: BTreeMap::new(), hidden: Slot(6), gaps: Vec::new() };
        let vote = vec![(Ballot::new(2, S3), value(77))];
        for (from, votes, loss) in [(S2, vec![], Some(loss)), (S3, vote, None), (NodeId(4), vec![], None)] {
            let promise = Promise { ballot, decided: Slot(4), votes, loss, incarnation: DISK };
            step(&mut s1, now, |r, out| r.message(now, from, Message::Promise(promise), out));
        }
        assert_eq!((s1.decided(), s1.is_leader()), (decided, false));
        step(&mut s1, now, |r, out| r.step_down(now, "in vain", out));
    }
}

/// Others may lack the same, so whoever has anything that is decided gives it, in front of a gap or behind it.
#[test]
fn values_behind_a_gap_are_handed_out() {
    let mut s1 = damaged();
    let ask = |s1: &mut Replica, from: u64| {
        let mut out = Output::default();
        s1.message(Time(0), S3, Message::Fetch(Fetch { from: Slot(from) }), &mut out);
        out.reads.into_iter().map(|read| (read.from.0, read.to.0)).collect::<Vec<_>>()
    };
    assert_eq!([2, 5, 6].map(|from| ask(&mut s1, from)), [vec![(2, 5)], vec![(5, 5)], vec![]]);
}
