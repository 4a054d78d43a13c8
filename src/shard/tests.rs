//! Input that no coordinator of ours would send.

use super::*;
use crate::bank::command::Range;
use crate::types::Transfer;

/// A shard of one server, which leads as soon as its first deadline has passed.
fn alone() -> (Shard, Time) {
    let topology = Topology { clusters: 2, servers_per_cluster: 1, accounts: 4, initial_balance: 10 };
    let timeouts = Timeouts::default();
    let restored = (Ballot::ZERO, Slot::ZERO, Vec::new());
    let replica = Replica::new(NodeId(1), vec![NodeId(1)], timeouts, Time(0), 1, restored);
    let bank = Bank::new(topology, ShardId(1));
    let mut shard = Shard::new(NodeId(1), topology, timeouts, Time(0), replica, bank);
    let now = shard.next_deadline();
    turn(&mut shard, now, Input::Timer { random: 1 });
    assert!(shard.replica().is_leader());
    (shard, now)
}

fn turn(shard: &mut Shard, now: Time, input: Input) -> Output {
    let (mut out, mut all) = (Output::default(), Output::default());
    shard.step(now, input, &mut out);
    loop {
        shard.step(now, Input::TurnEnd, &mut out);
        let done = std::mem::take(&mut out);
        all.replies.extend(done.replies);
        all.events.extend(done.events);
        if done.paxos.after.is_empty() {
            return all;
        }
        for (from, message) in done.paxos.after {
            shard.step(now, Input::Peer { from, message }, &mut out);
        }
    }
}

/// The leader armed a timer for the prepare after the outcome had already disarmed it, and panicked when it fired.
#[test]
fn a_prepare_and_its_outcome_in_one_slot_leave_nothing_in_doubt() {
    let (mut shard, now) = alone();
    let mut blocks = Vec::new();
    let range = Range { session: crate::types::Session::new(ShardId(2), 1), first: 1, count: 1 };
    let transfer = Transfer { from: AccountId(1), to: AccountId(3), amount: 1 };
    command::put_prepare(&mut blocks, range, [ShardId(1), ShardId(2)], &[transfer]);
    command::put_outcome(&mut blocks, range, &[0]);
    let request = Request::Submit { request: 1, blocks: Value::from_slice(&blocks) };
    let out = turn(&mut shard, now, Input::Request { client: ClientId(1), request });
    assert!(matches!(&out.replies[..], [(_, Response::Done { results, .. })] if results.len() == 2));
    let later = now + Duration::from_secs(10);
    let out = turn(&mut shard, later, Input::Timer { random: 1 });
    assert!(!out.events.iter().any(|e| matches!(e, Event::Recovering { .. })));
}
