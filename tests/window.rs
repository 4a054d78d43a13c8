//! A session's window must not let a shard without a majority hold up the shards that have one.

use std::time::Duration;

use shardpaxosbank::config::limits::SESSION_WINDOW;
use shardpaxosbank::config::{Limits, Timeouts, Topology};
use shardpaxosbank::sim::{Options, Trace, Weather, World};
use shardpaxosbank::storage::Retention;
use shardpaxosbank::txn::{Op, Outcome};
use shardpaxosbank::types::{AccountId, NodeId, Transfer};

fn transfer(from: u64, to: u64, amount: i64) -> Op {
    Op::Transfer(Transfer { from: AccountId(from), to: AccountId(to), amount })
}

/// D2 votes YES, the client is answered, and D2 is cut off before it confirms the outcome. The client's mark at D1 may
/// not pass that transaction, so after 65,536 more the window is full: everything else at D1 waited for D2 for ever.
#[test]
fn a_partner_without_a_majority_does_not_use_up_the_window() {
    let topology = Topology { clusters: 2, servers_per_cluster: 1, accounts: 8, initial_balance: 1 << 40 };
    let mut world = World::new(Options {
        topology,
        timeouts: Timeouts::default(),
        limits: Limits::default(),
        seed: 1,
        weather: Weather::CALM,
        sync_us: (100, 100),
        segment_bytes: 4 << 20,
        retention: Retention::default(),
        lines: false,
        odd_clocks: false,
        trace: Trace::Off,
    });
    let client = world.add_client();
    let outcome = |world: &World, tag: u64| world.clients[&client].asked[&tag].outcomes.last().cloned();
    let first = world.submit(client, transfer(1, 5, 1));
    while outcome(&world, first).is_none() {
        assert!(world.step(), "the first transfer is answered");
    }
    assert_eq!(outcome(&world, first), Some(Outcome::Committed));
    world.fail(NodeId(2));
    let soon = world.now + Duration::from_secs(3);
    world.run_until(soon);

    // The checker tells transfers apart by their amounts.
    let amounts = 1..=SESSION_WINDOW as i64 + 1000;
    let more: Vec<u64> = amounts.map(|amount| world.submit(client, transfer(3, 4, amount))).collect();
    let later = world.now + Duration::from_secs(10);
    world.run_until(later);
    let open = more.iter().filter(|tag| outcome(&world, **tag) != Some(Outcome::Committed)).count();
    assert_eq!(open, 0, "{open} of {} transfers inside D1 wait for D2", more.len());

    world.recover(NodeId(2));
    let end = world.now + Duration::from_secs(10);
    world.run_until(end);
    assert_eq!(world.at_rest(), Ok(()));
    assert_eq!(world.balance(NodeId(2), AccountId(5)), Some((1 << 40) + 1));
}
