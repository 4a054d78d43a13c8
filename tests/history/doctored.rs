//! Wrong histories, kind by kind. Each scene comes in two versions that differ in as little as possible: the right one must
//! be accepted, the doctored one (`wrong`) rejected, and the operations named for it must be of the scene.

use shardpaxosbank::history::{Call, Failure, Reply, check};
use shardpaxosbank::types::{AccountId, Reason};

use crate::story::Story;

const DONE: Reply = Reply::Committed;
const POOR: Reply = Reply::Aborted(Reason::InsufficientBalance);

fn doctored(scene: fn(&mut Story, bool)) {
    for seed in 0..25 {
        for wrong in [false, true] {
            let mut story = Story::new(seed);
            scene(&mut story, wrong);
            match check(&story.topology, &story.operations) {
                Ok(_) => assert!(!wrong, "seed {seed}: the doctored version was accepted"),
                Err(Failure::Violation(v)) => {
                    assert!(wrong, "seed {seed}: the right version was rejected:\n{v}");
                    let strangers: Vec<_> = v.operations.iter().filter(|i| **i < story.scene).collect();
                    assert!(
                        strangers.is_empty() && v.operations.len() <= 6,
                        "seed {seed}: {strangers:?} in\n{v}"
                    );
                }
                Err(Failure::Undecided(u)) => panic!("seed {seed}: {u}"),
            }
        }
    }
}

macro_rules! scenes {
    ($($name:ident: |$story:ident, $wrong:ident| $body:block)*) => {$(
        #[test]
        fn $name() {
            fn scene($story: &mut Story, $wrong: bool) $body
            doctored(scene);
        }
    )*};
}

scenes! {
    a_committed_transfer_is_lost: |s, wrong| {
        let [a, b, ..] = s.accounts();
        let before = s.balance(a);
        s.commit(a, b, 3);
        s.see(a, if wrong { before } else { before - 3 });
    }

    a_transfer_is_applied_twice: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.commit(a, b, 3);
        s.see(a, s.balance(a) - if wrong { 3 } else { 0 });
    }

    an_abort_by_a_lock_took_effect: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.refuse(a, b, 3, Reason::LockContention);
        s.see(a, s.balance(a) - if wrong { 3 } else { 0 });
    }

    an_abort_for_want_of_a_quorum_took_effect: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.refuse(a, b, 3, Reason::NoQuorum);
        s.see(b, s.balance(b) + if wrong { 3 } else { 0 });
    }

    an_abort_for_want_of_money_took_effect: |s, wrong| {
        let [a, b, ..] = s.accounts();
        let amount = s.balance(a) + 1;
        s.refuse(a, b, amount as i64, Reason::InsufficientBalance);
        s.see(b, s.balance(b) + if wrong { amount } else { 0 });
    }

    a_read_is_stale_after_a_commit: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.transfer(0, 10, a, b, 3, DONE);
        // In the right version it begins at the moment of the reply, which counts as beside it.
        s.read(if wrong { 11 } else { 10 }, 20, a, s.balance(a));
    }

    a_read_sees_the_future: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.read(0, if wrong { 4 } else { 5 }, b, s.balance(b) + 3);
        s.transfer(5, 10, a, b, 3, DONE);
    }

    two_reads_go_backwards: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.transfer(0, 100, a, b, 3, DONE);
        s.read(10, 20, b, s.balance(b) + 3);
        s.read(30, 40, b, s.balance(b) + if wrong { 0 } else { 3 });
    }

    a_transfer_without_a_reply_is_half_applied: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.open(0, a, b, 3);
        s.read(10, 20, a, s.balance(a) - 3);
        s.read(30, 40, b, s.balance(b) + if wrong { 0 } else { 3 });
    }

    a_state_between_credit_and_debit_is_seen: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.transfer(0, 100, a, b, 3, DONE);
        s.read(10, 20, b, s.balance(b) + 3);
        s.read(30, 40, a, s.balance(a) - if wrong { 0 } else { 3 });
    }

    a_credit_comes_without_a_debit: |s, wrong| {
        let [a, b, ..] = s.accounts();
        let before = s.balance(a);
        s.commit(a, b, 3);
        s.see(b, s.balance(b));
        s.see(a, before - if wrong { 0 } else { 3 });
    }

    a_debit_comes_without_a_credit: |s, wrong| {
        let [a, b, ..] = s.accounts();
        let before = s.balance(b);
        s.commit(a, b, 3);
        s.see(a, s.balance(a));
        s.see(b, before + if wrong { 0 } else { 3 });
    }

    an_overdraft_commits: |s, wrong| {
        let [a, b, ..] = s.accounts();
        let amount = s.balance(a) + u64::from(wrong);
        s.transfer(0, 10, a, b, amount as i64, DONE);
    }

    money_was_there_throughout: |s, wrong| {
        let [a, b, ..] = s.accounts();
        let amount = s.balance(a) + u64::from(!wrong);
        s.transfer(0, 10, a, b, amount as i64, POOR);
    }

    money_was_there_until_later: |s, wrong| {
        let [a, b, c, ..] = s.accounts();
        s.transfer(0, if wrong { 19 } else { 20 }, a, b, 20, POOR);
        s.transfer(20, 30, a, c, s.balance(a) as i64 - 10, DONE);
    }

    an_amount_of_zero_commits: |s, wrong| {
        let reply = if wrong { DONE } else { Reply::Aborted(Reason::InvalidAmount) };
        s.transfer(0, 10, 1, 2, 0, reply);
    }

    a_transfer_to_the_same_account_commits: |s, wrong| {
        let [a, ..] = s.accounts();
        s.transfer(0, 10, a, a, 1, if wrong { DONE } else { Reply::Aborted(Reason::SameAccount) });
    }

    a_transfer_to_an_unknown_account_commits: |s, wrong| {
        let [a, ..] = s.accounts();
        s.transfer(0, 10, a, 7, 1, if wrong { DONE } else { Reply::Aborted(Reason::UnknownAccount) });
    }

    the_second_reason_is_given_instead_of_the_first: |s, wrong| {
        let reason = if wrong { Reason::SameAccount } else { Reason::InvalidAmount };
        s.refuse(0, 0, -1, reason);
    }

    an_invalid_transfer_is_aborted_by_a_lock: |s, wrong| {
        let reason = if wrong { Reason::LockContention } else { Reason::UnknownAccount };
        s.refuse(1, 7, 1, reason);
    }

    a_good_transfer_is_called_unknown: |s, wrong| {
        let reason = if wrong { Reason::UnknownAccount } else { Reason::LockContention };
        s.refuse(1, 6, 1, reason);
    }

    an_unknown_account_has_a_balance: |s, wrong| {
        let reply = if wrong { Reply::Balance(0) } else { Reply::Aborted(Reason::UnknownAccount) };
        s.add(0, Some((5, reply)), Call::Read(AccountId(7)));
    }

    a_known_account_is_called_unknown: |s, wrong| {
        let reason = if wrong { Reason::UnknownAccount } else { Reason::NoQuorum };
        s.add(0, Some((5, Reply::Aborted(reason))), Call::Read(AccountId(6)));
    }

    a_transfer_is_answered_by_a_balance: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.transfer(0, 10, a, b, 1, if wrong { Reply::Balance(1) } else { DONE });
    }

    an_amount_is_off_by_one: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.commit(a, b, 3);
        s.see(b, s.balance(b) + u64::from(wrong));
    }

    a_reply_comes_before_its_invocation: |s, wrong| {
        let [a, ..] = s.accounts();
        s.read(10, if wrong { 9 } else { 10 }, a, s.balance(a));
    }

    reads_of_three_accounts_are_skewed: |s, wrong| {
        let [a, b, c, ..] = s.accounts();
        s.empty(b, a);
        let t = s.tick();
        // The second transfer can only be of the first one's money.
        s.transfer(t, t + 100, a, b, 5, DONE);
        s.transfer(t, t + 100, b, c, 4, DONE);
        s.read(t + 10, t + 20, c, s.balance(c) + 4);
        s.read(t + 30, t + 40, b, 1);
        s.read(t + 50, t + 60, a, s.balance(a) - if wrong { 0 } else { 5 });
    }

    two_readers_see_two_transfers_in_opposite_orders: |s, wrong| {
        let [a, b, c, d, ..] = s.accounts();
        let (old, new) = (s.balance(b), s.balance(b) + 3);
        s.commit(a, c, 5);
        let t = s.tick();
        s.transfer(t, t + 100, a, b, 3, DONE);
        s.transfer(t, t + 100, c, d, 2, DONE);
        let (older, newer) = (s.balance(d), s.balance(d) + 2);
        s.read(t + 10, t + 40, b, new);
        s.read(t + 41, t + 80, d, if wrong { older } else { newer });
        s.read(t + 11, t + 40, d, newer);
        s.read(t + 41, t + 80, b, if wrong { old } else { new });
    }

    the_same_money_is_spent_by_two: |s, wrong| {
        let [a, b, c, ..] = s.accounts();
        let all = s.balance(a) as i64;
        s.transfer(0, 100, a, b, all, DONE);
        s.transfer(0, 100, a, c, all, if wrong { DONE } else { POOR });
    }

    money_is_spent_before_it_came: |s, wrong| {
        let [a, b, c, ..] = s.accounts();
        s.empty(b, a);
        let t = s.tick();
        s.transfer(t, t + 10, b, c, 4, DONE);
        s.transfer(t + if wrong { 11 } else { 10 }, t + 20, a, b, 4, DONE);
    }

    an_open_transfer_is_seen_and_then_not: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.open(0, a, b, 3);
        s.read(10, 20, b, s.balance(b) + 3);
        s.read(1000, 1020, b, s.balance(b) + if wrong { 0 } else { 3 });
    }

    an_open_transfer_is_seen_twice: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.open(0, a, b, 3);
        s.read(10, 20, b, s.balance(b) + 3);
        s.read(1000, 1020, b, s.balance(b) + if wrong { 6 } else { 3 });
    }

    an_open_transfer_spends_what_is_not_there: |s, wrong| {
        let [a, b, ..] = s.accounts();
        let amount = s.balance(a) + u64::from(wrong);
        s.open(0, a, b, amount);
        s.read(10, 20, b, s.balance(b) + amount);
    }

    an_open_transfer_takes_effect_before_it_was_asked_for: |s, wrong| {
        let [a, b, ..] = s.accounts();
        s.read(0, 10, b, s.balance(b) + 3);
        s.open(if wrong { 11 } else { 10 }, a, b, 3);
    }

    a_balance_is_out_of_reach: |s, wrong| {
        let [a, b, c, d, ..] = s.accounts();
        // Even amounts make no odd difference.
        for to in [b, c, d] {
            s.transfer(0, 100, a, to, 2, DONE);
            s.transfer(0, 100, a, to, 4, DONE);
        }
        s.read(50, 60, a, s.balance(a) - if wrong { 7 } else { 8 });
    }

    two_balances_are_out_of_reach_together: |s, wrong| {
        let [a, b, c, ..] = s.accounts();
        s.transfer(0, 100, a, b, 2, DONE);
        s.transfer(0, 100, a, c, 3, DONE);
        s.read(50, 60, a, s.balance(a) - 3);
        s.read(70, 80, a, s.balance(a) - if wrong { 2 } else { 5 });
    }

    money_comes_from_nowhere: |s, wrong| {
        let [a, b, c, ..] = s.accounts();
        s.transfer(0, 50, a, b, 3, DONE);
        s.transfer(20, 70, a, c, 2, DONE);
        s.read(80, 90, c, s.balance(c) + 2 + u64::from(wrong));
    }

    an_effect_is_seen_before_its_cause: |s, wrong| {
        let [a, b, c, d, ..] = s.accounts();
        s.empty(b, a);
        s.empty(c, a);
        let t = s.tick();
        s.transfer(t, t + 100, a, b, 5, DONE);
        s.transfer(t, t + 100, b, c, 5, DONE);
        s.transfer(t, t + 100, c, d, 5, DONE);
        s.read(t + 10, t + 20, d, s.balance(d) + 5);
        s.read(t + 30, t + 40, a, s.balance(a) - if wrong { 0 } else { 5 });
    }

    a_refusal_is_older_than_a_balance_that_was_read: |s, wrong| {
        let [a, b, c, ..] = s.accounts();
        s.empty(b, a);
        let t = s.tick();
        s.transfer(t, t + 100, a, b, 5, DONE);
        s.read(t + 10, t + 20, b, 5);
        // From here on the money is there.
        s.transfer(t + if wrong { 21 } else { 20 }, t + 30, b, c, 5, POOR);
    }
}

/// A reply that came before its invocation is named as such, and not hidden behind balances.
#[test]
fn messages_name_operations_and_balances() {
    let mut story = Story::new(3);
    let [a, b, ..] = story.accounts();
    story.transfer(0, 100, a, b, 3, DONE);
    story.read(10, 20, b, story.balance(b) + 3);
    story.read(30, 40, b, story.balance(b));
    let text = check(&story.topology, &story.operations).unwrap_err().to_string();
    let scene = story.scene;
    assert!(text.starts_with("no order of instants explains these 2 operations together:"), "{text}");
    for part in [
        format!("#{} client", scene + 1),
        format!("#{} client", scene + 2),
        format!("read of {b}: balance {}", story.balance(b)),
        format!("beside it: #{scene} (+3"),
        "possible alone".to_string(),
    ] {
        assert!(text.contains(&part), "{part:?} is missing:\n{text}");
    }
}
