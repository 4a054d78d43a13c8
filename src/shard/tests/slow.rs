//! A leader that comes late to everything.

use super::*;
use crate::paxos::message::Doubts;

fn transfer(request: u64) -> Input {
    let range = Range { session: Session::new(ShardId(1), 1), first: request, count: 1 };
    let transfer = Transfer { from: AccountId(1), to: AccountId(2), amount: 1 };
    let mut blocks = Vec::new();
    command::put_transfers(&mut blocks, range, &[transfer]);
    let request = Request::Submit { request, blocks: Value::from_slice(&blocks) };
    Input::Request { client: ClientId(1), request }
}

/// S2 is there, and has so much room.
fn echo(room: Option<u64>) -> Input {
    let (ballot, round, position) = (Ballot::new(1, S1), 1, Slot::ZERO);
    let reply = HeartbeatReply { ballot, round, position, room, doubts: Doubts::None, incarnation: DISK };
    from_s2(Message::HeartbeatReply(reply))
}

fn accepted() -> Input {
    from_s2(Message::Accepted(Accepted { ballot: Ballot::new(1, S1), position: Slot(1), incarnation: DISK }))
}

/// A leader with one slot that is not decided, which has just found that it is too slow.
fn slow_leader() -> (Shard, Time) {
    let (mut shard, mut now) = leader_of_three();
    turn(&mut shard, now, transfer(1));
    let mut slow = 0;
    for _ in 0..2 {
        turn(&mut shard, now, echo(None));
        now = now + Duration::from_millis(190);
        let out = turn(&mut shard, now, Input::Timer { random: 1 });
        slow += out.events.iter().filter(|event| matches!(event, Event::TooSlow)).count();
    }
    assert_eq!(slow, 1);
    assert!(shard.replica().is_leader(), "a slot is open");
    (shard, now)
}

fn is_sent_away(out: &Output) -> bool {
    matches!(&out.replies[..], [(_, Response::Refused { why: Refusal::NotLeader(None), .. })])
}

#[test]
fn a_slow_leader_takes_nothing_new_finishes_what_it_proposed_and_goes() {
    let (mut shard, now) = slow_leader();
    assert!(is_sent_away(&turn(&mut shard, now, transfer(2))));
    let mut out = Output::default();
    shard.step(now, accepted(), &mut out);
    assert!(matches!(&out.replies[..], [(_, Response::Done { request: 1, .. })]), "{:?}", out.replies);
    shard.step(now, Input::TurnEnd, &mut out);
    assert!(!shard.replica().is_leader());
    let left = Message::Resign { ballot: Ballot::new(1, S1) };
    assert!(out.paxos.now.contains(&(S2, left)), "{:?}", out.paxos.now);
}

/// By the time that all is decided nobody can follow it any more. It used to go all the same.
#[test]
fn a_slow_leader_whom_nobody_can_follow_stays() {
    let (mut shard, now) = slow_leader();
    turn(&mut shard, now, echo(Some(0)));
    turn(&mut shard, now, accepted());
    assert!(shard.replica().is_leader());
    assert!(is_sent_away(&turn(&mut shard, now, transfer(2))), "somebody may be able to soon");
    let later = now + Timeouts::default().election() * 2;
    turn(&mut shard, later, echo(None));
    assert!(turn(&mut shard, later, transfer(3)).replies.is_empty(), "it is proposed");
    assert!(shard.replica().is_leader());
}
