//! Programs that use the client library, against processes.

use std::time::{Duration, Instant};

use shardpaxosbank::client::{AccountId, Bank, Error, Found, Reason, Receipt, Transfer, TxnId};

use crate::common::{LIMIT, eventually, put, temp};
use crate::process::{Processes, config_text, free_ports};

type Outcome = Result<Receipt, Error>;

/// One that waits for as long as a busy machine may need.
fn connect(all: &Processes) -> Bank {
    Bank::connect(&all.path).expect("a bank").with_timeout(LIMIT)
}

fn transfer(from: u64, to: u64, amount: i64) -> Transfer {
    Transfer { from: AccountId(from), to: AccountId(to), amount }
}

fn balances(bank: &Bank) -> Vec<u64> {
    (1..=bank.accounts()).map(|account| bank.balance(AccountId(account)).expect("a balance")).collect()
}

/// What a balance must be: 100 units, and what came and went.
fn expected(account: u64, done: impl Iterator<Item = Transfer>) -> u64 {
    let moved: i64 = done
        .map(|t| t.amount * (i64::from(t.to == AccountId(account)) - i64::from(t.from == AccountId(account))))
        .sum();
    (100 + moved) as u64
}

#[test]
fn transfers_within_and_across_shards() {
    let all = Processes::start(|text| text);
    let bank = connect(&all);
    assert_eq!(bank.accounts(), 30);
    let session = bank.session().expect("a session");
    let first = session.transfer(AccountId(1), AccountId(2), 5).expect("within a shard");
    let second = session.transfer(AccountId(1), AccountId(21), 7).expect("across shards");
    assert_eq!((first.id.session, first.id.seq + 1), (second.id.session, second.id.seq));
    assert_eq!((balances(&bank)[0], balances(&bank)[20]), (88, 107));
    for (from, to, amount, reason) in [
        (1, 21, 1_000, Reason::InsufficientBalance),
        (1, 1, 1, Reason::SameAccount),
        (1, 31, 1, Reason::UnknownAccount),
        (1, 2, 0, Reason::InvalidAmount),
    ] {
        let said = session.transfer(AccountId(from), AccountId(to), amount).expect_err("senseless");
        assert!(
            said.is_definite() && matches!(said, Error::Aborted { reason: r, .. } if r == reason),
            "{said}"
        );
    }
    let nobody = bank.balance(AccountId(31)).expect_err("no such account");
    assert_eq!(nobody, Error::Aborted { id: None, reason: Reason::UnknownAccount });

    // An id is one transfer's, for good.
    assert_eq!(bank.repeat(second.id, transfer(1, 21, 7)), Ok(second));
    let other = bank.repeat(second.id, transfer(1, 21, 8));
    assert_eq!(other, Err(Error::Aborted { id: Some(second.id), reason: Reason::IdReused }));
    let none = TxnId { seq: 4097, ..second.id };
    assert_eq!(bank.repeat(none, transfer(1, 21, 7)), Err(Error::NoSuchId { id: none }));
    assert_eq!(balances(&bank).iter().sum::<u64>(), 3_000);
}

#[test]
fn threads_share_a_session_and_none_gets_the_ids_of_another() {
    let all = Processes::start(|text| text);
    let session = connect(&all).session().expect("a session");
    let ids = std::thread::scope(|scope| {
        let work = |n: u64| {
            let session = session.clone();
            move || -> Vec<TxnId> {
                let one = |_| session.transfer(AccountId(n), AccountId(20 + n), 1).expect("nobody's else").id;
                (0..20).map(one).collect()
            }
        };
        let threads: Vec<_> = (1..=4).map(|n| scope.spawn(work(n))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    let distinct: std::collections::BTreeSet<&TxnId> = ids.iter().collect();
    assert_eq!((ids.len(), distinct.len()), (80, 80));
    let after = balances(&connect(&all));
    assert!((0..4).all(|n| after[n] == 80 && after[20 + n] == 120), "{after:?}");
}

/// More transfers than a session has ids.
#[test]
fn a_batch_ends_as_if_one_came_after_the_other() {
    let all = Processes::start(|text| text);
    let bank = connect(&all);
    let session = bank.session().expect("a session");
    // The second spends what the first brings, and the third what nobody has.
    let chain = [transfer(1, 11, 100), transfer(11, 21, 200), transfer(1, 2, 1), transfer(21, 1, 300)];
    let outcomes = session.batch(&chain).expect("ids");
    let committed: Vec<bool> = outcomes.iter().map(Result::is_ok).collect();
    assert_eq!(committed, [true, true, false, true], "{outcomes:?}");
    let numbers = outcomes.iter().map(|o| o.as_ref().map_or_else(Error::id, |r| Some(r.id)).map(|id| id.seq));
    assert_eq!(numbers.collect::<Vec<_>>(), [Some(1), Some(2), Some(3), Some(4)]);

    let many: Vec<Transfer> =
        (0..4_500).map(|n| transfer(3 + n % 7, 23 + n % 7, 1 - 2 * (n as i64 % 2))).collect();
    let ids = session.next_ids(many.len()).expect("ids");
    assert_ne!(ids[0].session, ids[4_499].session, "one that follows by itself");
    let orders: Vec<(TxnId, Transfer)> = ids.into_iter().zip(many).collect();
    let outcomes = session.submit_all(&orders);
    for ((id, order), outcome) in orders.iter().zip(&outcomes) {
        match outcome {
            Ok(receipt) => assert!(receipt.id == *id && order.amount == 1),
            Err(Error::Aborted { id: Some(said), reason }) => {
                let why = if order.amount < 1 { Reason::InvalidAmount } else { Reason::InsufficientBalance };
                assert_eq!((said, *reason), (id, why));
            }
            Err(e) => panic!("{e}"),
        }
    }
    let done = || orders.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok()).map(|((_, t), _)| *t);
    let after = balances(&bank);
    for account in (3..10).chain(23..30) {
        assert_eq!(after[account as usize - 1], expected(account, done()), "account {account}");
    }
    assert_eq!(session.batch(&[]).expect("nothing"), []);
}

/// kill -9 of two clusters' leaders while a batch is under way: each transfer takes effect once, and is told so.
#[test]
fn a_batch_outlives_its_leaders() {
    let mut all = Processes::start(|text| text.replace("initial_balance = 100", "initial_balance = 1000000"));
    let bank = connect(&all);
    let session = bank.session().expect("a session");
    // Pairs that share no account would all be done before anybody dies.
    let orders: Vec<Transfer> = (0..3_000)
        .map(|n| {
            if n % 3 == 0 {
                transfer(1 + n % 10, 1 + (n + 1) % 10, 3)
            } else {
                transfer(1 + n % 30, 1 + (n + 11) % 30, 1)
            }
        })
        .collect();
    let leaders = [all.leader(1..=3), all.leader(4..=6)];
    let outcomes = std::thread::scope(|scope| {
        let batch = scope.spawn(|| session.batch(&orders).expect("ids"));
        for leader in leaders {
            let begun = all.status(leader).expect("it runs").applied;
            eventually("some of it is done", || {
                all.status(leader).filter(|s| s.applied.0 > begun.0 + 20 || batch.is_finished())
            });
            assert!(!batch.is_finished(), "the batch ended before S{leader} died");
            all.kill(leader);
        }
        batch.join().expect("no panic")
    });
    for leader in leaders {
        all.launch(leader);
        all.listens(leader);
    }
    let done: Vec<Transfer> =
        orders.iter().zip(&outcomes).filter(|(_, o)| o.is_ok()).map(|(t, _)| *t).collect();
    for outcome in &outcomes {
        // A cluster that elects may seem to have no majority; then a fence may rule a transfer out for good.
        let fits = matches!(outcome, Ok(_) | Err(Error::Aborted { reason: Reason::NoQuorum, .. }));
        assert!(fits, "{outcome:?}");
    }
    assert!(done.len() > orders.len() / 2, "{} of {} committed", done.len(), orders.len());
    let after = balances(&bank);
    for account in 1..=30 {
        assert_eq!(
            after[account as usize - 1],
            999_900 + expected(account, done.iter().copied()),
            "account {account}"
        );
    }
    assert_eq!(after.iter().sum::<u64>(), 30_000_000);
    all.agree();

    // Another program looks at the ids, and repeats everything: that changes nothing.
    let ids: Vec<TxnId> =
        outcomes.iter().map(|o| o.as_ref().map_or_else(|e| e.id().expect("an id"), |r| r.id)).collect();
    let later = connect(&all);
    for (id, outcome) in ids.iter().zip(&outcomes).step_by(100) {
        let found = later.look_up(*id).expect("an answer");
        assert_eq!(found == Found::Committed, outcome.is_ok(), "{id}: {found}, not {outcome:?}");
    }
    let again: Vec<Outcome> = later.repeat_all(&ids.into_iter().zip(orders).collect::<Vec<_>>());
    assert!(again == outcomes, "a definite answer stays");
    assert_eq!(balances(&later), after);
}

#[test]
fn without_a_majority_the_error_has_the_id_and_a_repetition_the_answer() {
    let mut all = Processes::start(|text| text);
    let bank = connect(&all);
    let session = bank.session().expect("a session");
    // One more, whose end is known before.
    let first = session.transfer(AccountId(2), AccountId(22), 1).expect("all are up");
    all.kill(1);
    all.kill(2);
    let hasty = session.with_timeout(Duration::from_secs(3));
    let begun = Instant::now();
    let order = transfer(1, 21, 5);
    let said = hasty.transfer(order.from, order.to, order.amount).expect_err("no majority");
    assert!(begun.elapsed() < LIMIT / 4, "{:?}", begun.elapsed());
    let Error::Unknown { id, refusal: None } = said else { panic!("{said:?}") };
    assert!(!said.is_definite() && said.to_string().contains(&id.to_string()), "{said}");
    let hasty = bank.with_timeout(Duration::from_secs(1));
    let said = [hasty.look_up(id).err(), hasty.balance(AccountId(1)).err()];
    assert!(said.iter().all(|e| matches!(e, Some(Error::Unavailable { .. }))), "{said:?}");
    // The others work, and give sessions out.
    let elsewhere = bank.session().expect("a session of another shard");
    elsewhere.transfer(AccountId(11), AccountId(22), 1).expect("both have a majority");

    all.launch(1);
    all.listens(1);
    let told = bank.repeat(id, order);
    let moved = match &told {
        Ok(receipt) => u64::from(receipt.id == id) * 5,
        // An attempt had reached one cluster, and was fenced there.
        Err(Error::Aborted { reason: Reason::NoQuorum, .. }) => 0,
        Err(e) => panic!("{e}"),
    };
    let later = connect(&all);
    assert_eq!(later.repeat(id, order), told, "a definite answer stays");
    assert_eq!((balances(&later)[0], balances(&later)[20]), (100 - moved, 100 + moved));
    assert_eq!(later.look_up(first.id), Ok(Found::Committed));
    assert_eq!(later.look_up(TxnId { seq: 99, ..id }), Ok(Found::NeverSeen));
}

/// Nobody is there: calls give up in time, and what was not sent is said to be unknown no less.
#[test]
fn a_bank_without_servers_keeps_nobody_waiting() {
    let place = temp();
    let path = put(place.path(), "cluster.toml", &config_text(1, &free_ports(3)));
    let begun = Instant::now();
    let bank = Bank::connect(path).expect("servers may come later").with_timeout(Duration::from_millis(300));
    let said = [bank.session().err(), bank.balance(AccountId(1)).err()];
    assert!(said.iter().all(|e| matches!(e, Some(Error::Unavailable { .. }))), "{said:?}");
    let id = "D1-1:1".parse().expect("an id");
    assert_eq!(bank.repeat(id, transfer(1, 2, 1)), Err(Error::Unknown { id, refusal: None }));
    drop(bank);
    assert!(begun.elapsed() < LIMIT / 4, "{:?}", begun.elapsed());
}

#[test]
fn what_a_configuration_lacks_is_named() {
    let all = Processes::start_clusters(1, |text| text);
    let text = std::fs::read_to_string(&all.path).expect("a file");
    let refused = |name: &str, text: &str| {
        Bank::connect(put(all.dir.path(), name, text)).err().expect("it does not fit")
    };
    let said = refused("other.toml", &text.replace("accounts = 10", "accounts = 11"));
    assert!(
        matches!(&said, Error::Refused(why) if why.contains('S') && why.contains("accounts")),
        "{said:?}"
    );
    let said = refused("bad.toml", "clusters = 3");
    assert!(matches!(&said, Error::Config(why) if why.contains("bad.toml")), "{said:?}");
    let said = Bank::connect("nowhere.toml").err().expect("no file");
    assert!(matches!(&said, Error::Config(why) if why.contains("nowhere.toml")), "{said:?}");
}

/// Sessions end soon here: one that was not used for so long is followed by another, and its ids are known to be too old.
#[test]
fn an_idle_session_is_followed_by_another_one() {
    let all = Processes::start_clusters(1, |text| {
        text.replace("[servers]", "[timeouts]\nsession_idle_timeout_ms = 10000\n[servers]")
    });
    let bank = connect(&all);
    let session = bank.session().expect("a session");
    let first = session.transfer(AccountId(1), AccountId(2), 1).expect("an open session").id;
    let kept = session.next_id().expect("an id");
    eventually("the session expires", || (bank.look_up(first) == Ok(Found::Finished)).then_some(()));
    let said = bank.repeat(kept, transfer(1, 2, 1)).expect_err("it is too old");
    assert!(matches!(said, Error::SessionExpired { id, .. } if id == kept), "{said:?}");
    let next = session.transfer(AccountId(1), AccountId(2), 1).expect("another one").id;
    assert_ne!(next.session, first.session);
    assert_eq!(balances(&bank)[..2], [98, 102]);
}
