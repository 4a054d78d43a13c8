//! P4 end to end: one of three servers holds another state than the others from the start.

use std::collections::BTreeMap;

use crate::world::{CLIENT, S1, S2, S3, TOPOLOGY, World, wal};
use shardpaxosbank::bank::Bank;
use shardpaxosbank::config::{Limits, Timeouts, Topology};
use shardpaxosbank::paxos::Replica;
use shardpaxosbank::shard::{Input, Shard};
use shardpaxosbank::storage::MemDisk;
use shardpaxosbank::txn::message::{Refusal, Request, Response};
use shardpaxosbank::types::{AccountId, Ballot, NodeId, ShardId, Slot, Time};

/// These servers are up, and one of them opened its accounts with one unit more.
fn world(up: &[NodeId], wrong: NodeId) -> World {
    let now = Time(1_000_000);
    let mut servers = BTreeMap::new();
    for id in up {
        let balance = TOPOLOGY.initial_balance + u64::from(*id == wrong);
        let bank = Bank::new(Topology { initial_balance: balance, ..TOPOLOGY }, ShardId(1));
        let all = TOPOLOGY.servers().collect();
        let (timeouts, restored) = (Timeouts::default(), (Ballot::ZERO, Slot::ZERO, Vec::new()));
        let replica = Replica::new(*id, all, timeouts, now, u64::from(id.0), restored);
        let limits = Limits { digest_slots: 4, ..Limits::default() };
        let shard = Shard::new(*id, TOPOLOGY, timeouts, now, replica, bank).with_limits(limits);
        servers.insert(*id, (shard, wal(&MemDisk::new(), *id)));
    }
    let mut world = World::new(now, servers);
    world.elect();
    world
}

#[test]
fn one_that_differs_from_two_stops_and_the_two_go_on() {
    let mut world = world(&[S1, S2, S3], S3);
    for slot in 1..=10 {
        assert!(matches!(world.open()[..], [Response::Done { .. }]), "slot {slot}");
        assert_eq!(world.stopped.contains_key(&S3), slot >= 4, "after slot {slot}");
    }
    assert_eq!(world.stopped.len(), 1);
    let text = world.stopped[&S3].to_string();
    let begin =
        "P4: the state of S3 differs from that of S1 and S2 since one of the slots 1 to 4, and a majority";
    assert!(text.starts_with(begin), "{text}");
    assert!(world.divergence(S3).outvoted);
    for id in [S1, S2] {
        let confirmed = world.servers[&id].0.confirmed_digest();
        assert_eq!(confirmed.map(|(slot, _)| slot), Some(Slot(8)), "{id}");
    }
}

#[test]
fn two_that_differ_and_hear_no_third_tell_clients_nothing_more_and_stop() {
    let mut world = world(&[S1, S2], S2);
    for slot in 1..=4 {
        assert!(matches!(world.open()[..], [Response::Done { .. }]), "slot {slot}");
    }
    let busy = |replies: &[Response]| matches!(replies, [Response::Refused { why: Refusal::Busy, .. }]);
    assert!(busy(&world.open()));
    let read = Request::Read { request: 99, account: AccountId(1), local: true };
    world.turn(S2, Input::Request { client: CLIENT, request: read });
    assert!(busy(&world.replies), "{:?}", world.replies);
    assert!(world.stopped.is_empty(), "the third may still come");
    world.pass(Timeouts::default().election() * 4);
    assert_eq!(world.stopped.keys().collect::<Vec<_>>(), [&S1, &S2]);
    assert!(!world.divergence(S1).outvoted && !world.divergence(S2).outvoted);
    let text = world.stopped[&S1].to_string();
    assert!(text.contains("S1 differs from that of S2") && text.contains("start all servers"), "{text}");
}
