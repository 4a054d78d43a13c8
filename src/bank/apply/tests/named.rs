//! Transactions that a client has named: a register is that of its transfer, and of no other under the same id (T1).

use super::*;
use crate::bank::command::named;
use crate::bank::{Incoming, named_window};

const REUSED: Status = Status::Aborted(Reason::IdReused);

impl Log {
    fn named_transfer(&mut self, session: Session, seq: u64, transfer: Transfer) -> Status {
        self.put(|out| named::put_transfers(out, one(session, seq), &[transfer]))[0]
    }

    fn named_prepare(&mut self, session: Session, seq: u64, transfer: Transfer) -> Status {
        self.put(|out| named::put_prepare(out, one(session, seq), BOTH, &[transfer]))[0]
    }

    fn named_outcome(&mut self, session: Session, seq: u64, transfer: Transfer, commit: bool) -> Status {
        self.put(|out| named::put_outcome(out, one(session, seq), &[u8::from(commit)], &[transfer]))[0]
    }

    fn named_fence(&mut self, session: Session, seq: u64, transfer: Transfer) -> Status {
        self.put(|out| named::put_fence(out, one(session, seq), &[transfer]))[0]
    }
}

#[test]
fn the_same_transfer_again_is_answered_from_the_record() {
    let (mut log, s) = Log::new();
    for _ in 0..2 {
        assert_eq!(log.named_transfer(s, 1, t(1, 2, 3)), Status::Committed);
        assert_eq!(log.named_transfer(s, 2, t(1, 2, 30)), Status::Aborted(Reason::InsufficientBalance));
    }
    assert_eq!((log.balance(1), log.balance(2)), (7, 13));
}

/// Two servers carry out two transfers under one id. Were the register of one taken for the vote on the other, money would
/// leave one account and never reach another.
#[test]
fn another_transfer_under_the_same_id_is_a_no_and_changes_nothing() {
    let (across, other) = (t(1, 5, 3), t(2, 5, 4));
    let set: [fn(&mut Log, Session, Transfer) -> Status; 4] = [
        |log, s, t| log.named_prepare(s, 1, t),
        |log, s, t| log.named_fence(s, 1, t),
        |log, s, t| log.named_outcome(s, 1, t, false),
        |log, s, _| log.named_transfer(s, 1, self::t(1, 2, 3)),
    ];
    for (n, set) in set.into_iter().enumerate() {
        let (mut log, s) = Log::new();
        set(&mut log, s, across);
        let (before, held) = (log.bank.status(TxnId { session: s, seq: 1 }), log.bank.holds().clone());
        assert!(before.is_some());
        let balances = [1, 2].map(|account| log.balance(account));
        assert_eq!(log.named_prepare(s, 1, other), REUSED, "{n}");
        assert_eq!(log.named_fence(s, 1, other), REUSED);
        assert_eq!(log.named_transfer(s, 1, t(2, 3, 1)), REUSED);
        assert_eq!(log.named_outcome(s, 1, other, false), Status::Done, "an abort of what never was");
        assert_eq!(log.named_outcome(s, 1, other, true), Status::Invalid);
        // A coordinator's own transactions have no name.
        assert_eq!(log.prepare(s, 1, across), REUSED);
        assert_eq!(log.fence(s, 1), REUSED);
        assert_eq!(log.bank.status(TxnId { session: s, seq: 1 }), before);
        assert_eq!((log.bank.holds(), [1, 2].map(|account| log.balance(account))), (&held, balances));
    }
}

#[test]
fn the_outcome_of_the_right_transfer_settles_it_and_its_name_stays() {
    let (mut log, s) = Log::new();
    assert_eq!(log.named_prepare(s, 1, t(1, 5, 3)), Status::Yes);
    assert!(log.bank.holds().iter().all(|(_, hold)| hold.named));
    assert_eq!(log.named_outcome(s, 1, t(1, 5, 3), true), Status::Done);
    assert_eq!(log.balance(1), 7);
    assert_eq!(log.named_fence(s, 1, t(1, 5, 3)), Status::YesCommitted);
    // Somebody who recovers the other transfer elsewhere must not read a commit here.
    assert_eq!(log.named_fence(s, 1, t(2, 5, 3)), REUSED);
    // What a coordinator did without a name is nobody else's either.
    assert_eq!(log.prepare(s, 2, t(1, 5, 3)), Status::Yes);
    assert_eq!(log.named_prepare(s, 2, t(1, 5, 3)), REUSED);
}

/// Names cost memory, so there are fewer of them.
#[test]
fn a_client_may_name_as_many_as_its_window_takes() {
    let (mut log, s) = Log::new();
    let last = named_window(SESSION_WINDOW);
    assert_eq!(log.named_transfer(s, last, t(1, 2, 1)), Status::Committed);
    assert_eq!(log.named_transfer(s, last + 1, t(1, 2, 1)), Status::Busy);
    assert_eq!(log.transfer(s, last + 1, t(1, 2, 1)), Status::Committed);
}

/// Marks pass what a coordinator has finished with. Were it named, another coordinator would read *forgotten* in one shard
/// and a vote in the other.
#[test]
fn only_what_was_opened_for_names_takes_them() {
    let (mut log, own) = Log::new();
    log.put(named::put_open);
    let BlockResult::Opened(clients) = log.effects.results[0] else { panic!("an open opens") };
    let mut touch = |session| log.put(|out| command::put_touch(out, session))[0];
    assert_eq!(touch(clients), Status::Done);
    let elsewhere = Session::new(ShardId(2), 1);
    for session in [own, Session::new(D1, 3), elsewhere] {
        assert_eq!(touch(session), Status::Expired, "{session}");
    }
    assert_eq!(log.bank.sessions(), 2, "nothing is taken up for that");
    assert_eq!(log.bank.digest(), log.bank.digest_anew());
    log.close(clients);
    assert_eq!(log.put(|out| command::put_touch(out, clients)), [Status::Done]);
    assert_eq!(log.expire(clients, &[]), Status::Done);
    assert_eq!(log.put(|out| command::put_touch(out, clients)), [Status::Expired]);
    assert_eq!(log.bank.digest(), log.bank.digest_anew());
}

/// Names are part of the state (P4): of its digest, of its image, and they go with their session.
#[test]
fn names_are_part_of_the_state() {
    let (mut log, s) = Log::new();
    let (mut other, _) = Log::new();
    log.named_transfer(s, 1, t(1, 2, 3));
    other.transfer(s, 1, t(1, 2, 3));
    assert_ne!(log.bank.digest(), other.bank.digest());
    log.named_prepare(s, 2, t(2, 5, 3));
    let image = log.bank.image(8);
    let mut incoming = Incoming::new(image.cut(), &log.bank.topology, D1).expect("of this shard");
    while let Some(n) = incoming.wanted() {
        assert!(incoming.push(&image.piece(n)));
    }
    let copy = incoming.finish(log.bank.topology, D1).expect("the same state");
    assert_eq!(copy, log.bank);
    assert_eq!(copy.digest(), copy.digest_anew());

    log.named_outcome(s, 2, t(2, 5, 3), false);
    log.mark(s, 2);
    assert_eq!(log.bank.digest(), log.bank.digest_anew(), "a name was forgotten with its register");
    log.close(s);
    assert_eq!(log.expire(s, &[]), Status::Done);
    assert_eq!(log.bank.digest(), log.bank.digest_anew());
    assert_eq!(log.named_fence(s, 1, t(1, 2, 3)), Status::Expired);
}
