//! Simulations at costs that are made up: that they can be repeated, keep the bank's rules, and react to costs as they should.

use super::*;
use crate::bench::predict::work::{APPLIED, BYTE, MESSAGE, PREPARED, SETTLED, SYNC, TAKEN, TURN, Work};

fn work(costs: &[(usize, f64)]) -> Work {
    let mut work = Work::default();
    costs.iter().for_each(|(kind, ns)| work.add(*kind, *ns));
    work
}

fn costs() -> Costs {
    let both = [(TURN, 3_000.0), (MESSAGE, 1_500.0), (BYTE, 0.4), (PREPARED, 150.0), (SETTLED, 100.0)];
    Costs {
        server: work(&[&both[..], &[(TAKEN, 5.0), (APPLIED, 50.0), (SYNC, 5_000.0)]].concat()),
        client: work(&[&both[..], &[(TAKEN, 50.0), (APPLIED, 30.0)]].concat()),
        sync_ns: vec![80_000.0, 100_000.0, 150_000.0],
        disk_ns_per_byte: 1.0,
        wake_ns: 10_000.0,
    }
}

fn setup(clusters: u16, cross: f64) -> Setup {
    let one = Topology { clusters: 1, servers_per_cluster: 3, accounts: 2_000, initial_balance: 1_000 };
    Setup {
        topology: with_clusters(one, clusters),
        machines: Machines::Own,
        clients: clusters.into(),
        batch: 20,
        in_flight: 2,
        cross,
        network_ns: 30_000,
        warm_up: Duration::from_millis(2),
        span: Duration::from_millis(4),
        seed: 7,
    }
}

/// Each run has also held every balance on every server against what clients were told.
fn ran(setup: Setup) -> Run {
    run(setup, &costs(), None).expect("a bank that adds up")
}

#[test]
fn a_run_can_be_repeated_and_seeds_differ() {
    let first = ran(setup(3, 0.5));
    assert_eq!(ran(setup(3, 0.5)), first);
    assert_ne!(ran(Setup { seed: 8, ..setup(3, 0.5) }).digests, first.digests);
    assert_eq!(first.digests.len(), 3);
    assert!(first.batches > 0 && first.p50 > 0 && first.p50 <= first.p99);
}

#[test]
fn more_clusters_do_more_and_transfers_across_cost_more() {
    let rate = |clusters, cross| ran(setup(clusters, cross)).throughput;
    let alone = [1, 2, 4, 8].map(|clusters| rate(clusters, 0.0));
    assert!(alone.is_sorted() && alone[3] > 4.0 * alone[0], "{alone:?}");
    assert!(rate(4, 1.0) < alone[2]);
}

/// What is predicted follows from the costs: a sync, two processors, a network.
#[test]
fn what_costs_more_takes_longer() {
    let base = ran(setup(2, 0.2));
    let slow = Costs { sync_ns: vec![500_000.0], ..costs() };
    let slow = run(setup(2, 0.2), &slow, None).expect("a slow disk");
    assert!(slow.p50 > base.p50 + 350, "{} and {}", slow.p50, base.p50);
    let far = ran(Setup { network_ns: 1_030_000, ..setup(2, 0.2) });
    // To the leader, to the follower, and back.
    assert!(far.p50 >= base.p50 + 3_900, "{} and {}", far.p50, base.p50);
    let narrow = |processors| ran(Setup { machines: Machines::One { processors }, ..setup(2, 0.2) });
    let (one, many) = (narrow(1), narrow(16));
    assert!(one.throughput < many.throughput, "{} and {}", one.throughput, many.throughput);
}

/// One transfer at a time waits for four messages, for one sync, and for what is done in between.
#[test]
fn the_time_of_one_transfer_is_the_sum_of_what_it_waits_for() {
    let flat =
        Costs { server: Work::default(), client: Work::default(), sync_ns: vec![100_000.0], ..costs() };
    let flat = Costs { disk_ns_per_byte: 0.0, ..flat };
    let one = Setup { batch: 1, in_flight: 1, ..setup(1, 0.0) };
    let found = run(one, &flat, None).expect("a bank");
    assert_eq!((found.p50, found.p99), (260, 260), "4 × (30 + 10) + 100 µs");
    // What is measured may begin or end in the middle of a transfer.
    let counts = [found.leaders.0[SYNC], found.leaders.0[TAKEN], found.leaders.0[APPLIED]];
    assert!(counts.iter().all(|count| (count - 1.0).abs() < 0.1), "{counts:?}");
    assert!((found.followers.0[APPLIED] - 2.0).abs() < 0.2, "{}", found.followers.0[APPLIED]);
}

#[test]
fn the_code_can_be_timed() {
    let mut fits = [work::Fit::default(), work::Fit::default()];
    run(setup(2, 0.5), &costs(), Some(&mut fits)).expect("a bank");
    for fit in fits {
        let found = fit.solve();
        assert!(found.0.iter().sum::<f64>() > 0.0, "{found:?}");
    }
}
