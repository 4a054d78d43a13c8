//! The n-th write and the n-th sync of a server fail, for every n of a whole life, start and snapshots included; or the power
//! goes there. It stops at once, the others go on, and it comes back with what it told (P1, S1).

use shardpaxosbank::config::{Limits, Timeouts, Topology};
use shardpaxosbank::sim::{Harm, Options, Trace, Weather, World};
use shardpaxosbank::storage::Retention;
use shardpaxosbank::txn::Op;
use shardpaxosbank::types::{AccountId, NodeId, Time, Transfer};

const TOPOLOGY: Topology =
    Topology { clusters: 1, servers_per_cluster: 3, accounts: 6, initial_balance: 100 };

fn world(seed: u64) -> World {
    // A small reserve, since all of it is secured in segments at the start.
    let limits = Limits {
        reserve_bytes: 2_000,
        snapshot_bytes: 300,
        digest_slots: 4,
        piece_bytes: 1024,
        tail_bytes: 0,
        ..Limits::default()
    };
    World::new(Options {
        topology: TOPOLOGY,
        timeouts: Timeouts::default(),
        limits,
        seed,
        weather: Weather::CALM,
        sync_us: (100, 100),
        segment_bytes: 8192,
        retention: Retention { audit_bytes: 0, audit_age: None },
        lines: false,
        odd_clocks: false,
        trace: Trace::Off,
    })
}

/// Thirty transfers, one after the other so that each is a slot of its own.
fn work(world: &mut World, client: u32, round: u64) {
    for n in 0..30 {
        let (from, to) = (AccountId(1 + n % 6), AccountId(1 + (n + 1 + round) % 6));
        if from != to {
            world.submit(client, Op::Transfer(Transfer { from, to, amount: 1 + n as i64 }));
        }
        world.run_until(Time(world.now.0 + 6_000));
    }
}

/// Whether the server's n-th operation came at all.
fn fails_at(victim: NodeId, harm: Harm) -> bool {
    let mut world = world(7);
    let client = world.add_client();
    world.arm(victim, harm);
    work(&mut world, client, 0);
    let struck = world.servers[&victim].running.is_none();
    if struck {
        // The checker compares what it finds with all that it has told.
        while !world.start(victim) {}
    }
    world.disarm(victim);
    // What was armed for later may strike yet.
    let end = world.now.0 + 20_000_000;
    loop {
        world.run_until(Time(world.now.0 + 100_000));
        if world.servers[&victim].running.is_none() {
            world.start(victim);
            continue;
        }
        match world.at_rest() {
            Ok(()) => break,
            Err(why) => assert!(world.now.0 < end, "{victim} {harm:?}: not at rest: {why}"),
        }
    }
    let digests: Vec<u64> =
        world.servers.values().filter_map(|s| Some(s.running.as_ref()?.shard.bank().digest())).collect();
    assert_eq!(digests, [digests[0]; 3], "{victim} {harm:?}");
    struck
}

fn sweep(harm: fn(u64) -> Harm, least: u64) {
    // The one that leads, and one that follows.
    for victim in [NodeId(1), NodeId(2)] {
        let first = (1..).find(|n| !fails_at(victim, harm(*n))).expect("a life has an end");
        assert!(first > least, "only {first} operations of {victim}");
    }
}

#[test]
fn any_write_may_fail() {
    sweep(Harm::FailWrite, 40);
}

#[test]
fn any_sync_may_fail() {
    sweep(Harm::FailSync, 40);
}

#[test]
fn the_power_may_go_before_any_write_or_sync() {
    sweep(Harm::Fuse, 100);
}
