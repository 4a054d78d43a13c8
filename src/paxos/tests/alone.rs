//! What one server does with messages and times that a whole cluster seldom brings about.

use super::*;
use crate::config::limits;

const CLUSTER: [NodeId; 3] = [S1, S2, S3];

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn value(len: usize) -> Value {
    Value::from_slice(&vec![7; len])
}

fn accepted(ballot: Ballot, position: u64) -> Message {
    Message::Accepted(Accepted { ballot, position: Slot(position), incarnation: DISK })
}

/// The slots of the entries that were sent to a server.
fn slots(sent: &[(NodeId, Message)], to: NodeId) -> Vec<u64> {
    let mut slots = Vec::new();
    for (server, message) in sent {
        if let (true, Message::Accept(m)) = (*server == to, message) {
            slots.extend(m.first.0..m.first.0 + m.values.len() as u64);
        }
    }
    slots
}

// ---- elections ----

/// Time-outs are between one and two of what is configured, and servers that draw other numbers wait for other times:
/// otherwise they would campaign against each other for ever.
#[test]
fn time_outs_are_spread_over_a_whole_time_out() {
    let timeouts = Timeouts::default();
    let (election, pause) = (timeouts.election(), timeouts.heartbeat() * 2);
    let (mut waits, mut pauses) = (Vec::new(), Vec::new());
    for random in 0..200 {
        let start = (Ballot::ZERO, Slot::ZERO, Vec::new());
        let mut s1 = Replica::new(S1, CLUSTER.to_vec(), timeouts, Time(0), random << 32, start);
        let due = s1.next_deadline();
        waits.push(due.since(Time(0)));
        step(&mut s1, due, |r, out| r.timer(due, random << 32, out));
        pauses.push(s1.next_deadline().since(due));
    }
    for (drawn, least) in [(waits, election), (pauses, pause)] {
        assert!(drawn.iter().all(|d| (least..least * 2).contains(d)), "{drawn:?}");
        for (from, to) in [(4, 5), (5, 6), (6, 7), (7, 8)] {
            assert!(drawn.iter().any(|d| (least * from / 4..least * to / 4).contains(d)), "{drawn:?}");
        }
    }
}

#[test]
fn answers_to_the_pre_vote_of_an_earlier_search_do_not_count() {
    let start = (Ballot::ZERO, Slot::ZERO, Vec::new());
    let mut s1 = Replica::new(S1, CLUSTER.to_vec(), Timeouts::default(), Time(0), 1, start);
    let reply = |attempt, granted| {
        Message::PreVoteReply(PreVoteReply { attempt, granted, promised: Ballot::new(4, S3) })
    };
    let due = s1.next_deadline();
    step(&mut s1, due, |r, out| r.timer(due, 1, out));
    let beat =
        Heartbeat { ballot: Ballot::new(1, S2), round: 1, decided: Slot::ZERO, phase1_end: Slot::ZERO };
    step(&mut s1, due, |r, out| r.message(due, S2, Message::Heartbeat(beat), out));
    let now = s1.next_deadline();
    step(&mut s1, now, |r, out| r.timer(now, 1, out));
    step(&mut s1, now, |r, out| r.message(now, S2, reply(1, true), out));
    step(&mut s1, now, |r, out| r.message(now, S3, reply(2, false), out));
    assert_eq!(s1.promised(), Ballot::new(1, S2), "nobody granted the second one yet");
    step(&mut s1, now, |r, out| r.message(now, S2, reply(2, true), out));
    assert_eq!(s1.promised(), Ballot::new(5, S1), "above everything that was heard of");
}

/// A client's wish is no reason to depose a leader, nor to begin a campaign anew that is under way.
#[test]
fn a_server_campaigns_on_request_only_if_nobody_leads() {
    let ask = |s1: &mut Replica, now| {
        let mut out = Output::default();
        s1.campaign_if_leaderless(now, &mut out);
        out.now.len()
    };
    let start = (Ballot::ZERO, Slot::ZERO, Vec::new());
    let mut s1 = Replica::new(S1, CLUSTER.to_vec(), Timeouts::default(), Time(0), 1, start);
    let now = Time(10_000_000);
    let beat =
        Heartbeat { ballot: Ballot::new(1, S2), round: 1, decided: Slot::ZERO, phase1_end: Slot::ZERO };
    step(&mut s1, now, |r, out| r.message(now, S2, Message::Heartbeat(beat), out));
    assert_eq!(ask(&mut s1, now), 0, "S2 leads");
    assert_eq!(ask(&mut s1, now + Timeouts::default().election()), 2, "S2 was not heard for a time-out");
    assert_eq!(ask(&mut s1, now + Timeouts::default().election()), 0, "it asks already");
    let (mut s1, now) = leader();
    assert_eq!(ask(&mut s1, now), 0, "it leads itself");
}

/// State synchronisation in prepare: S1 is behind both others when they promise.
#[test]
fn a_candidate_fetches_what_others_know_as_decided_before_it_leads() {
    let (mut s1, now) = candidate();
    let ballot = s1.promised();
    let promise = Message::Promise(Promise {
        ballot,
        decided: Slot(6),
        votes: Vec::new(),
        loss: None,
        incarnation: DISK,
    });
    let fetch = |from| Message::Fetch(Fetch { from: Slot(from) });
    let sent = step(&mut s1, now, |r, out| r.message(now, S2, promise.clone(), out));
    assert_eq!(sent, [(S2, fetch(4))]);
    let sent = step(&mut s1, now, |r, out| r.message(now, S3, promise, out));
    assert_eq!(sent, [], "one transfer at a time");

    // It brings one slot that is already here and two that are missing; one remains.
    let entries = |first, ballots: &[Ballot]| {
        let entries = ballots.iter().map(|b| (*b, value(b.round as usize))).collect();
        Message::Entries(Entries { first: Slot(first), entries })
    };
    let (old, young) = (Ballot::new(0, S3), Ballot::new(2, S3));
    let later = now + Timeouts::default().election();
    let mut out = Output::default();
    s1.message(later, S2, entries(3, &[old, old, young]), &mut out);
    // A vote never names a ballot above the promise: the value is the same in every higher one.
    let learned = [(4, old, 0), (5, ballot, 2)].map(|(slot, ballot, len)| Record::Learn {
        slot: Slot(slot),
        ballot,
        value: value(len),
    });
    assert_eq!(out.records, learned);
    assert_eq!(out.now, [(S3, fetch(6))]);
    assert_eq!((s1.decided(), s1.position(), s1.is_leader()), (Slot(5), Slot(5), false));
    assert!(s1.next_deadline() >= later + Timeouts::default().election(), "its clock stands still");

    // What skips a slot is no use.
    step(&mut s1, later, |r, out| r.message(later, S3, entries(7, &[old]), out));
    assert_eq!((s1.decided(), s1.is_leader()), (Slot(5), false));
    step(&mut s1, later, |r, out| r.message(later, S3, entries(6, &[old]), out));
    assert_eq!((s1.decided(), s1.is_leader()), (Slot(6), true));
    // A leader needs nothing of the kind any more.
    step(&mut s1, later, |r, out| r.message(later, S3, entries(7, &[old]), out));
    assert_eq!(s1.decided(), Slot(6));
}

/// P2, slot by slot: its own votes and S2's, each of the higher ballot in one slot.
#[test]
fn a_leader_proposes_the_vote_of_the_highest_ballot() {
    let (low, high) = (Ballot::new(1, S2), Ballot::new(2, S3));
    let start = (high, Slot(3), vec![(low, value(1)), (high, value(2)), (low, value(3))]);
    let mut s1 = Replica::new(S1, CLUSTER.to_vec(), Timeouts::default(), Time(0), 1, start);
    let now = s1.next_deadline();
    step(&mut s1, now, |r, out| r.timer(now, 1, out));
    let granted = PreVoteReply { attempt: 1, granted: true, promised: high };
    step(&mut s1, now, |r, out| r.message(now, S2, Message::PreVoteReply(granted), out));
    let ballot = Ballot::new(3, S1);
    let votes = vec![(high, value(4)), (low, value(5)), (low, value(3)), (low, value(6))];
    let promise = Promise { ballot, decided: Slot(3), votes, loss: None, incarnation: DISK };
    let sent = step(&mut s1, now, |r, out| r.message(now, S2, Message::Promise(promise), out));
    let proposed = sent.iter().find_map(|(to, message)| match message {
        Message::Accept(m) if *to == S2 => Some((m.first, m.values.clone())),
        _ => None,
    });
    assert_eq!(proposed, Some((Slot(4), vec![value(4), value(2), value(3), value(6)])));
}

#[test]
#[should_panic(expected = "P2: two values for slot 4 in ballot 1.S2")]
fn two_values_in_one_ballot_stop_the_server() {
    let vote = |len| vec![(Ballot::new(1, S2), value(len))];
    let start = (Ballot::new(1, S2), Slot(3), vote(1));
    let mut s1 = Replica::new(S1, CLUSTER.to_vec(), Timeouts::default(), Time(0), 1, start);
    let now = s1.next_deadline();
    step(&mut s1, now, |r, out| r.timer(now, 1, out));
    let granted = PreVoteReply { attempt: 1, granted: true, promised: Ballot::ZERO };
    step(&mut s1, now, |r, out| r.message(now, S2, Message::PreVoteReply(granted), out));
    let promise = Promise {
        ballot: Ballot::new(2, S1),
        decided: Slot(3),
        votes: vote(2),
        loss: None,
        incarnation: DISK,
    };
    step(&mut s1, now, |r, out| r.message(now, S2, Message::Promise(promise), out));
}

#[test]
fn only_a_refusal_of_the_present_ballot_ends_a_campaign() {
    let refuse = |round, promised| {
        Message::Refuse(Refuse { ballot: Ballot::new(round, S1), promised: Ballot::new(promised, S3) })
    };
    let promise = Message::Promise(Promise {
        ballot: Ballot::new(1, S1),
        decided: Slot(3),
        votes: Vec::new(),
        loss: None,
        incarnation: DISK,
    });
    for (refusal, ends) in [(refuse(0, 9), false), (refuse(1, 0), false), (refuse(1, 9), true)] {
        let (mut s1, now) = candidate();
        step(&mut s1, now, |r, out| r.message(now, S3, refusal.clone(), out));
        step(&mut s1, now, |r, out| r.message(now, S2, promise.clone(), out));
        assert_eq!(s1.is_leader(), !ends, "{refusal:?}");
        let (mut s1, now) = leader();
        step(&mut s1, now, |r, out| r.message(now, S3, refusal.clone(), out));
        assert_eq!(s1.is_leader(), !ends, "{refusal:?}");
    }
}

#[test]
fn messages_of_strangers_and_in_the_name_of_others_change_nothing() {
    let (mut s1, now) = leader();
    let before = s1.clone();
    let beat = |server| {
        Message::Heartbeat(Heartbeat {
            ballot: Ballot::new(5, server),
            round: 1,
            decided: Slot(3),
            phase1_end: Slot::ZERO,
        })
    };
    for (from, message) in [(NodeId(4), beat(NodeId(4))), (NodeId(4), accepted(Ballot::new(1, S1), 3))] {
        let mut out = Output::default();
        s1.message(now, from, message, &mut out);
        assert_eq!((&s1, out.events.len()), (&before, 1));
    }
    let mut out = Output::default();
    s1.message(now, S2, beat(S3), &mut out);
    assert_eq!((s1.promised(), s1.is_leader(), out.records), (before.promised(), true, vec![]));
}

/// What a client is told: *no quorum* needs a search as long as a time-out in which less than a majority was heard.
#[test]
fn a_server_that_hears_enough_others_goes_on_searching() {
    let timeouts = Timeouts::default();
    let five: Vec<NodeId> = (1..=5).map(NodeId).collect();
    for (servers, heard, standing) in [
        (&CLUSTER[..], 0, Standing::NoQuorum),
        (&CLUSTER[..], 1, Standing::Searching),
        (&five[..], 1, Standing::NoQuorum),
        (&five[..], 2, Standing::Searching),
    ] {
        let start = (Ballot::ZERO, Slot::ZERO, Vec::new());
        let mut s1 = Replica::new(S1, servers.to_vec(), timeouts, Time(0), 1, start);
        let begun = s1.next_deadline();
        step(&mut s1, begun, |r, out| r.timer(begun, 1, out));
        let now = begun + timeouts.election();
        let refused = PreVoteReply { attempt: 1, granted: false, promised: Ballot::ZERO };
        for peer in &servers[1..=heard] {
            step(&mut s1, now, |r, out| r.message(now, *peer, Message::PreVoteReply(refused.clone()), out));
        }
        assert_eq!(s1.standing(now), standing, "{heard} of {} heard", servers.len());
        let later = now + timeouts.election();
        assert_eq!(s1.standing(later), Standing::NoQuorum, "that was too long ago");
    }
}

// ---- the leader ----

#[test]
fn a_leader_keeps_one_window_in_flight() {
    let (mut s1, now) = leader();
    let (ballot, window) = (s1.promised(), limits::WINDOW_SLOTS);
    let mut proposed = 0;
    let sent = step(&mut s1, now, |r, out| {
        while r.can_propose() && proposed < 2 * window {
            proposed += 1;
            assert_eq!(r.propose(value(1), out), Slot(3 + proposed));
        }
    });
    assert_eq!(proposed, window);
    assert_eq!(slots(&sent, S2), (4..4 + window).collect::<Vec<_>>());
    assert!(slots(&sent, S3).is_empty(), "S3 has not said yet where it stands");
    step(&mut s1, now, |r, out| r.message(now, S2, accepted(ballot, 5), out));
    assert_eq!(s1.decided(), Slot(5));
    step(&mut s1, now, |r, out| (0..2).for_each(|_| _ = r.propose(value(1), out)));
    assert!(!s1.can_propose());
    // S3 stands two windows back; it is sent one, and more when it has taken some.
    let sent = step(&mut s1, now, |r, out| r.message(now, S3, accepted(ballot, 3), out));
    assert_eq!(slots(&sent, S3), (4..4 + window).collect::<Vec<_>>());
    let sent = step(&mut s1, now, |r, out| r.message(now, S3, accepted(ballot, 4), out));
    assert_eq!(slots(&sent, S3), [4 + window]);
    // It steps down, and nobody proposes any more.
    step(&mut s1, now, |r, out| r.resume(now, out));
    assert!(!s1.can_propose() && s1.confirmed_round() == 0 && !s1.phase1_decided());
}

/// An echo of the round in which something was sent may have left before it arrived; one of a later round did not.
#[test]
fn entries_are_sent_again_when_a_later_round_shows_them_lost() {
    let (mut s1, now) = leader();
    let ballot = s1.promised();
    let round = |r: &mut Replica| r.begin_round(&mut Output::default());
    let first = round(&mut s1);
    let sent = step(&mut s1, now, |r, out| _ = r.propose(value(1), out));
    assert_eq!(slots(&sent, S2), [4]);
    let echo = |round, position, s1: &mut Replica| {
        let mut out = Output::default();
        s1.message(now, S2, super::echo(ballot, round, position), &mut out);
        (slots(&out.now, S2), out.events)
    };
    assert_eq!(echo(first, 3, &mut s1), (vec![], vec![]));
    let second = round(&mut s1);
    let again = Event::Resending { to: S2, from: Slot(4) };
    assert_eq!(echo(second, 3, &mut s1), (vec![4], vec![again]));
    assert_eq!(echo(second, 3, &mut s1), (vec![], vec![]), "once in a round is enough");
    let third = round(&mut s1);
    assert_eq!(echo(third, 4, &mut s1), (vec![], vec![]), "nothing is missing");
}

/// What is no longer in memory comes from disk, once, and what the memory has follows.
#[test]
fn a_follower_that_lags_far_is_sent_entries_from_disk_and_then_from_memory() {
    let (mut s1, now) = leader();
    let ballot = s1.promised();
    step(&mut s1, now, |r, out| _ = r.propose(value(1), out));
    let behind = |r: &mut Replica, out: &mut Output| r.message(now, S3, accepted(ballot, 1), out);
    let mut out = Output::default();
    behind(&mut s1, &mut out);
    let [read] = &out.reads[..] else { panic!("one read: {:?}", out.reads) };
    assert_eq!((read.purpose, read.from, read.to), (Purpose::CatchUp(S3), Slot(2), Slot(3)));
    let mut out = Output::default();
    behind(&mut s1, &mut out);
    assert_eq!(out, Output::default(), "it is being read");
    // While it is, a round that shows S3 still behind is no reason to begin anew.
    let round = s1.begin_round(&mut out);
    s1.message(now, S3, super::echo(ballot, round + 1, 1), &mut out);
    assert_eq!((out.reads.len(), out.events.len()), (0, 0));

    let entries = |n| vec![(Ballot::ZERO, value(2)); n];
    let read = |s1: &mut Replica, first, n| {
        step(s1, now, |r, out| r.log_read(now, Purpose::CatchUp(S3), Slot(first), entries(n), out))
    };
    let sent = read(&mut s1, 2, 2);
    assert_eq!(slots(&sent, S3), [2, 3, 4], "two from disk, one from memory");
    assert!(slots(&read(&mut s1, 2, 2), S3).is_empty(), "nobody waits for these");
    assert!(slots(&read(&mut s1, 5, 0), S3).is_empty());
}

#[test]
fn decided_entries_are_handed_out_from_memory_or_disk_and_others_not_at_all() {
    let ballot = Ballot::new(1, S2);
    let start = (ballot, Slot(3), vec![(ballot, value(1)), (ballot, value(2)), (ballot, value(3))]);
    let mut s1 = Replica::new(S1, CLUSTER.to_vec(), Timeouts::default(), Time(0), 1, start);
    let beat = Heartbeat { ballot, round: 1, decided: Slot(5), phase1_end: Slot::ZERO };
    step(&mut s1, Time(0), |r, out| r.message(Time(0), S2, Message::Heartbeat(beat), out));
    assert_eq!((s1.decided(), s1.position()), (Slot(5), Slot(6)));
    let mut fetch = |from| {
        let mut out = Output::default();
        s1.message(Time(0), S3, Message::Fetch(Fetch { from: Slot(from) }), &mut out);
        let sent = out.now.first().map(|(_, message)| match message {
            Message::Entries(m) => (m.first.0, m.entries.len()),
            other => panic!("{other:?}"),
        });
        (sent, out.reads.first().map(|read| (read.from.0, read.to.0)), out.events.len())
    };
    assert_eq!(fetch(6), (None, None, 1));
    assert_eq!(fetch(5), (Some((5, 1)), None, 0));
    assert_eq!(fetch(4), (Some((4, 2)), None, 0));
    assert_eq!(fetch(3), (None, Some((3, 5)), 0));
}

#[test]
fn decided_entries_leave_memory_when_there_are_many() {
    let (mut s1, now) = leader();
    let ballot = s1.promised();
    let len = limits::VALUE_BYTES;
    let kept = limits::TAIL_BYTES / len;
    for slot in 4..4 + 2 * kept as u64 {
        step(&mut s1, now, |r, out| _ = r.propose(value(len), out));
        step(&mut s1, now, |r, out| r.message(now, S2, accepted(ballot, slot), out));
        s1.trim();
    }
    let last = 3 + 2 * kept as u64;
    assert_eq!(s1.decided(), Slot(last));
    assert!(s1.entry(Slot(last)).is_some() && s1.entry(Slot(last - kept as u64)).is_none());
}

/// P5: a read waits for what phase 1 brought up.
#[test]
fn what_phase_1_brought_up_is_decided_anew_before_reads() {
    let (mut s1, now) = candidate();
    let ballot = s1.promised();
    assert!(!s1.phase1_decided());
    let votes = vec![(Ballot::new(0, S3), value(1)), (Ballot::new(0, S3), value(2))];
    let promise = Promise { ballot, decided: Slot(3), votes, loss: None, incarnation: DISK };
    let sent = step(&mut s1, now, |r, out| r.message(now, S2, Message::Promise(promise), out));
    assert_eq!(slots(&sent, S2), [4, 5]);
    assert!(s1.is_leader() && !s1.phase1_decided());
    step(&mut s1, now, |r, out| r.message(now, S2, accepted(ballot, 4), out));
    assert!(!s1.phase1_decided());
    step(&mut s1, now, |r, out| r.message(now, S2, accepted(ballot, 5), out));
    assert!(s1.phase1_decided());
}

// ---- what is decided ----

#[test]
fn followers_are_told_what_is_decided_a_millisecond_later_and_once() {
    let (mut s1, now) = leader();
    let ballot = s1.promised();
    let idle = s1.next_deadline();
    assert_eq!(idle, now + Timeouts::default().heartbeat());
    step(&mut s1, now, |r, out| _ = r.propose(value(1), out));
    step(&mut s1, now, |r, out| r.message(now, S2, accepted(ballot, 4), out));
    let due = now + millis(1);
    assert_eq!(s1.next_deadline(), due);
    // More turns do not put it off.
    step(&mut s1, now + Duration::from_micros(500), |_, _| ());
    assert_eq!(s1.next_deadline(), due);
    let sent = step(&mut s1, due, |r, out| r.timer(due, 1, out));
    let beat = Heartbeat { ballot, round: 1, decided: Slot(4), phase1_end: Slot(3) };
    assert_eq!(sent, [(S2, Message::Heartbeat(beat.clone())), (S3, Message::Heartbeat(beat))]);
    assert_eq!(s1.next_deadline(), idle, "there is nothing more to tell");
}

/// Under load a leader sent a heartbeat each millisecond for what its proposals had told long ago, and had answers to all.
#[test]
fn who_gets_the_next_entries_need_not_be_told_again() {
    let (mut s1, now) = leader();
    let ballot = s1.promised();
    step(&mut s1, now, |r, out| r.message(now, S3, accepted(ballot, 3), out));
    let idle = s1.next_deadline();
    step(&mut s1, now, |r, out| _ = r.propose(value(1), out));
    step(&mut s1, now, |r, out| r.message(now, S2, accepted(ballot, 4), out));
    assert_eq!(s1.next_deadline(), now + millis(1));
    let sent = step(&mut s1, now, |r, out| _ = r.propose(value(2), out));
    assert_eq!((slots(&sent, S2), slots(&sent, S3)), (vec![5], vec![5]));
    assert_eq!(s1.next_deadline(), idle, "both have heard that slot 4 is decided");
    // S3's window is closed, so that the entry tells S2 alone.
    let mut last = 5;
    while !slots(&step(&mut s1, now, |r, out| _ = r.propose(value(3), out)), S3).is_empty() {
        last += 1;
    }
    step(&mut s1, now, |r, out| r.message(now, S2, accepted(ballot, last), out));
    let sent = step(&mut s1, now, |r, out| _ = r.propose(value(4), out));
    assert!(!slots(&sent, S2).is_empty() && slots(&sent, S3).is_empty());
    assert_eq!(s1.next_deadline(), now + millis(1), "S3 has not");
}

#[test]
fn a_decided_slot_is_written_down_once() {
    let start = (Ballot::ZERO, Slot(3), Vec::new());
    let mut s2 = Replica::new(S2, CLUSTER.to_vec(), Timeouts::default(), Time(0), 1, start);
    let first = Time(10_000_000);
    let accept =
        Accept { ballot: Ballot::new(1, S1), decided: Slot(4), first: Slot(4), values: vec![Value::noop()] };
    let mut turn = |now: Time, message: Option<Message>| {
        let mut out = Output::default();
        match message {
            Some(message) => s2.message(now, S1, message, &mut out),
            None => s2.timer(now, 1, &mut out),
        }
        s2.turn_end(now, &mut out);
        out.records.retain(|record| matches!(record, Record::Decided(_)));
        (out.records, s2.next_deadline())
    };
    let due = first + millis(100);
    assert_eq!(turn(first, Some(Message::Accept(accept.clone()))), (vec![], due));
    // Turns in between neither put it off nor write it.
    assert_eq!(turn(first + millis(50), Some(Message::Accept(accept.clone()))), (vec![], due));
    let (records, next) = turn(due, None);
    assert_eq!(records, [Record::Decided(Slot(4))]);
    assert!(
        next >= first + millis(50) + Timeouts::default().election(),
        "only the election is left to wait for"
    );
    assert_eq!(turn(due + millis(50), Some(Message::Accept(accept))).0, []);
    assert_eq!(turn(due + millis(200), None).0, []);
}
