//! A leader whose disk is full.

use super::*;

fn submit(request: u64, put: impl Fn(&mut Vec<u8>)) -> Input {
    let mut blocks = Vec::new();
    put(&mut blocks);
    let request = Request::Submit { request, blocks: Value::from_slice(&blocks) };
    Input::Request { client: ClientId(1), request }
}

fn transfer(request: u64) -> Input {
    let range = Range { session: Session::new(ShardId(1), 1), first: request, count: 1 };
    let transfer = Transfer { from: AccountId(1), to: AccountId(2), amount: 1 };
    submit(request, |out| command::put_transfers(out, range, &[transfer]))
}

fn fence(request: u64) -> Input {
    let range = Range { session: Session::new(ShardId(1), 1), first: request, count: 1 };
    submit(request, |out| command::put_fence(out, range))
}

fn room(shard: &mut Shard, now: Time, bytes: Option<u64>) {
    shard.step(now, Input::Room(bytes), &mut Output::default());
}

fn is_refused(out: &Output, why: &Refusal) -> bool {
    matches!(&out.replies[..], [(_, Response::Refused { why: said, .. })] if said == why)
}

fn is_done(out: &Output) -> bool {
    matches!(&out.replies[..], [(_, Response::Done { .. })])
}

const RESERVE: u64 = limits::RESERVE_BYTES;

/// T8: refused before it is proposed. What frees locks may have the reserve, but for its last quarter, and reads need
/// nothing.
#[test]
fn new_work_stops_at_the_reserve_and_fences_at_its_end() {
    let (mut shard, now) = alone();
    room(&mut shard, now, Some(RESERVE + 1));
    assert!(is_done(&turn(&mut shard, now, transfer(1))), "the last that finds room");
    room(&mut shard, now, Some(RESERVE));
    assert!(is_refused(&turn(&mut shard, now, transfer(2)), &Refusal::StorageFull));
    assert!(is_done(&turn(&mut shard, now, fence(2))));
    room(&mut shard, now, Some(RESERVE / 4));
    assert!(is_refused(&turn(&mut shard, now, fence(3)), &Refusal::StorageFull));
    let balance = turn(&mut shard, now, read(4)).replies;
    assert!(matches!(&balance[..], [(_, Response::Balance { balance: Ok(_), .. })]));
    let decided = shard.replica().decided();
    room(&mut shard, now, None);
    assert!(is_done(&turn(&mut shard, now, transfer(5))));
    assert_eq!(shard.replica().decided(), decided.next(), "nothing that was refused was proposed");
}

/// What one turn brings shares the room that there is.
#[test]
fn requests_of_one_turn_share_the_room() {
    let (mut shard, now) = alone();
    room(&mut shard, now, Some(RESERVE + 100));
    let mut out = Output::default();
    for request in 1..=2 {
        shard.step(now, transfer(request), &mut out);
    }
    let out = turn(&mut shard, now, transfer(3));
    let refused = |(_, r): &&(ClientId, Response)| matches!(r, Response::Refused { .. });
    assert_eq!(out.replies.iter().filter(refused).count(), 2, "{:?}", out.replies);
}

/// Followers say how much room they have. A leader that has some refuses new work all the same when no majority would
/// accept it; one without sends clients away for a moment, and leaves the lead to those that have room.
#[test]
fn a_leader_knows_the_room_of_its_followers() {
    let (mut shard, now) = leader_of_three();
    let reply = |from: u16, room: Option<u64>| {
        let reply = HeartbeatReply {
            ballot: Ballot::new(1, S1),
            round: 1,
            position: Slot::ZERO,
            room,
            doubts: crate::paxos::message::Doubts::None,
            incarnation: DISK,
        };
        Input::Peer { from: NodeId(from), message: Message::HeartbeatReply(reply) }
    };
    turn(&mut shard, now, reply(2, Some(0)));
    assert!(turn(&mut shard, now, transfer(1)).replies.is_empty(), "S3 and this one are a majority");
    turn(&mut shard, now, reply(3, Some(0)));
    assert!(is_refused(&turn(&mut shard, now, transfer(2)), &Refusal::StorageFull));
    turn(&mut shard, now, reply(2, None));
    turn(&mut shard, now, reply(3, None));
    room(&mut shard, now, Some(0));
    assert!(is_refused(&turn(&mut shard, now, transfer(3)), &Refusal::Busy));
    let later = now + Timeouts::default().heartbeat();
    turn(&mut shard, later, Input::Timer { random: 1 });
    assert!(!shard.replica().is_leader());
}
