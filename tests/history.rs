//! The judge of histories: right ones are accepted, doctored ones rejected, and on tiny ones it agrees with a judge that
//! tries every order.

#[path = "history/enumerate.rs"]
mod enumerate;
#[path = "history/generate.rs"]
mod generate;

use enumerate::is_explicable;
use generate::{Shape, generate, topology, with_final_reads};
use shardpaxosbank::config::Topology;
use shardpaxosbank::history::{Call, Failure, Operation, Reply, check, check_within};
use shardpaxosbank::types::{AccountId, Reason, Transfer};
use shardpaxosbank::workload::SplitMix64;

fn accepts(name: &str, shape: Shape, seeds: u64) {
    for seed in 0..seeds {
        let operations = with_final_reads(seed, &shape);
        match check(&topology(&shape), &operations) {
            Ok(report) => assert_eq!(report.operations, operations.len()),
            Err(failure) => panic!("{name}, seed {seed}, {shape:?}:\n{failure}"),
        }
    }
}

#[test]
fn one_after_the_other_is_accepted() {
    accepts("sequential", Shape { lines: 1, ..Shape::default() }, 200);
}

#[test]
fn few_at_a_time_are_accepted() {
    accepts("few", Shape::default(), 300);
    accepts("two accounts", Shape { accounts: 2, ..Shape::default() }, 300);
    accepts("equal moments", Shape { longest: 4, lines: 6, ..Shape::default() }, 300);
}

#[test]
fn open_outcomes_are_accepted() {
    accepts("some open", Shape { open: 5, ..Shape::default() }, 300);
    accepts("many open", Shape { open: 30, lines: 8, ..Shape::default() }, 200);
    accepts("two accounts", Shape { open: 15, accounts: 2, ..Shape::default() }, 200);
}

#[test]
fn heavy_concurrency_is_accepted() {
    let hot = Shape { operations: 600, lines: 160, accounts: 12, initial_balance: 20, ..Shape::default() };
    accepts("hot", hot, 6);
    accepts("hot and open", Shape { open: 5, ..hot }, 6);
    accepts("hotter", Shape { accounts: 6, lines: 80, ..hot }, 6);
    accepts("poor", Shape { accounts: 18, initial_balance: 10, ..hot }, 6);
}

#[test]
fn random_tiny_histories_get_the_verdict_of_the_enumeration() {
    let mut rng = SplitMix64::new(7);
    let (mut right, mut wrong) = (0, 0);
    for case in 0..40_000 {
        let operations = tiny(&mut rng);
        let topology =
            Topology { clusters: 1, servers_per_cluster: 1, accounts: 3, initial_balance: rng.below(4) };
        let expected = is_explicable(&topology, &operations);
        match (check(&topology, &operations), expected) {
            (Ok(_), true) => right += 1,
            (Err(Failure::Violation(_)), false) => wrong += 1,
            (verdict, _) => panic!("case {case}: {expected}, but {verdict:?}\n{topology:?}\n{operations:#?}"),
        }
    }
    assert!(right > 5_000 && wrong > 5_000, "{right} right, {wrong} wrong: too few of one kind");
}

/// Up to six operations with replies that were drawn, not computed.
fn tiny(rng: &mut SplitMix64) -> Vec<Operation> {
    let span = 2 + rng.below(12);
    (0..1 + rng.below(6))
        .map(|client| {
            let account = |rng: &mut SplitMix64| AccountId(1 + rng.below(3));
            let invoked = rng.below(span);
            let at = invoked + rng.below(span);
            let read = rng.below(10) < 4;
            let call = match read {
                true => Call::Read(account(rng)),
                false => Call::Transfer(Transfer {
                    from: account(rng),
                    to: account(rng),
                    amount: 1 + rng.below(3) as i64,
                }),
            };
            let reply = match (read, rng.below(12)) {
                (_, 0..2) => None,
                (_, 2) => Some(Reply::Aborted(Reason::LockContention)),
                (true, _) => Some(Reply::Balance(rng.below(6))),
                (false, 3..5) => Some(Reply::Aborted(Reason::InsufficientBalance)),
                (false, _) => Some(Reply::Committed),
            };
            Operation { client: client as u32, call, invoked, replied: reply.map(|r| (at, r)) }
        })
        .collect()
}
