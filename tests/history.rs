//! The judge of histories: right ones are accepted, doctored ones rejected, and on tiny ones it agrees with a judge that
//! tries every order.

#[path = "history/doctored.rs"]
mod doctored;
#[path = "history/enumerate.rs"]
mod enumerate;
#[path = "history/generate.rs"]
mod generate;
#[path = "history/story.rs"]
mod story;

use enumerate::is_explicable;
use generate::{Shape, topology, with_final_reads};
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
    let long = Shape { operations: 1000, lines: 40, accounts: 8, initial_balance: 20, ..Shape::default() };
    accepts("long", Shape { open: 3, ..long }, 6);
}

#[test]
fn heavy_concurrency_is_accepted() {
    let hot = Shape { operations: 600, lines: 160, accounts: 12, initial_balance: 20, ..Shape::default() };
    accepts("hot", hot, 6);
    accepts("hot and open", Shape { open: 5, ..hot }, 6);
    accepts("hotter", Shape { accounts: 6, lines: 80, ..hot }, 6);
    accepts("poor", Shape { accounts: 18, initial_balance: 10, ..hot }, 6);
}

/// The final read of some account is off by one, after everything has come to rest: nothing hides that.
#[test]
fn a_wrong_final_balance_is_found_behind_heavy_concurrency() {
    let hot = Shape { operations: 600, lines: 160, accounts: 12, initial_balance: 20, ..Shape::default() };
    for seed in 0..6 {
        let mut operations = with_final_reads(seed, &hot);
        let index = operations.len() - 1 - seed as usize;
        let Some((_, Reply::Balance(balance))) = &mut operations[index].replied else { panic!("not a read") };
        *balance += 1;
        match check(&topology(&hot), &operations) {
            Err(Failure::Violation(v)) => assert_eq!(v.operations, [index], "{v}"),
            verdict => panic!("seed {seed}: {verdict:?}"),
        }
    }
}

/// A transfer is taken out of the history, or stands in it twice, and final reads tell.
#[test]
fn a_transfer_too_few_or_too_many_is_found() {
    let shape = Shape { operations: 300, lines: 30, ..Shape::default() };
    for seed in 0..20 {
        let right = with_final_reads(seed, &shape);
        let is_commit = |o: &&Operation| o.replied.is_some_and(|(_, reply)| reply == Reply::Committed);
        let index = right.iter().position(|o| is_commit(&o)).expect("something commits") + 1;
        let victim = index + right[index..].iter().position(|o| is_commit(&o)).expect("more than one does");
        let mut fewer = right.clone();
        fewer.remove(victim);
        let mut more = right.clone();
        more.insert(victim, right[victim]);
        for wrong in [fewer, more] {
            let verdict = check(&topology(&shape), &wrong);
            assert!(matches!(verdict, Err(Failure::Violation(_))), "seed {seed}: {verdict:?}");
        }
    }
}

/// Any result is right that is not a wrong verdict, and running out of budget says where.
#[test]
fn a_budget_that_is_too_small_is_said_so() {
    let hot = Shape { operations: 600, lines: 160, accounts: 12, initial_balance: 20, ..Shape::default() };
    let operations = with_final_reads(1, &hot);
    match check_within(2_000, &topology(&hot), &operations) {
        Err(Failure::Undecided(u)) => {
            assert!(u.to_string().starts_with("undecided: the budget did not suffice"), "{u}");
            assert!(u.operations.len() > 100, "{u}");
        }
        verdict => panic!("{verdict:?}"),
    }
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
