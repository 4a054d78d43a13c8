//! Properties of the state machine that need no log around it.

mod named;

use proptest::prelude::*;

use super::*;
use crate::bank::apply::digest::hold_share;
use crate::config::limits::SESSION_WINDOW;

const D1: ShardId = ShardId(1);
const BOTH: [ShardId; 2] = [ShardId(1), ShardId(2)];

fn bank() -> Bank {
    let topology = Topology { clusters: 2, servers_per_cluster: 1, accounts: 8, initial_balance: 10 };
    Bank::new(topology, D1)
}

fn t(from: u64, to: u64, amount: i64) -> Transfer {
    Transfer { from: AccountId(from), to: AccountId(to), amount }
}

struct Log {
    bank: Bank,
    effects: Effects,
}

impl Log {
    fn new() -> (Log, Session) {
        let mut log = Log { bank: bank(), effects: Effects::default() };
        log.put(command::put_open);
        let BlockResult::Opened(session) = log.effects.results[0] else { panic!("an open opens") };
        (log, session)
    }

    fn put(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Vec<Status> {
        let mut bytes = Vec::new();
        encode(&mut bytes);
        assert_eq!(command::check(&bytes).map(|size| size.blocks), Ok(1));
        let slot = self.bank.applied().next();
        let value = Value::from_slice(&bytes);
        self.bank.apply(slot, &value, &mut self.effects);
        let history = crate::bank::history::decode(slot, &[value], &self.effects.history);
        assert_eq!(history.as_ref(), Ok(&self.effects.committed));
        self.effects.results[0].unpack().unwrap_or_default()
    }

    fn transfer(&mut self, session: Session, seq: u64, transfer: Transfer) -> Status {
        self.put(|out| command::put_transfers(out, one(session, seq), &[transfer]))[0]
    }

    fn prepare(&mut self, session: Session, seq: u64, transfer: Transfer) -> Status {
        self.put(|out| command::put_prepare(out, one(session, seq), BOTH, &[transfer]))[0]
    }

    fn outcome(&mut self, session: Session, seq: u64, commit: bool) -> Status {
        self.put(|out| command::put_outcome(out, one(session, seq), &[u8::from(commit)]))[0]
    }

    fn fence(&mut self, session: Session, seq: u64) -> Status {
        self.put(|out| command::put_fence(out, one(session, seq)))[0]
    }

    fn mark(&mut self, session: Session, mark: u64) -> Status {
        self.put(|out| command::put_mark(out, session, mark))[0]
    }

    fn close(&mut self, session: Session) -> Status {
        self.put(|out| command::put_close(out, session))[0]
    }

    fn expire(&mut self, session: Session, live: &[Session]) -> Status {
        self.put(|out| command::put_expire(out, session, live))[0]
    }

    fn balance(&self, account: u64) -> u64 {
        self.bank.balance(AccountId(account)).expect("an account of D1")
    }
}

fn one(session: Session, seq: u64) -> Range {
    Range { session, first: seq, count: 1 }
}

#[test]
fn reasons_follow_their_precedence() {
    let (mut log, s) = Log::new();
    let outcomes = [
        (t(1, 1, 0), Reason::InvalidAmount),
        (t(9, 9, 1), Reason::SameAccount),
        (t(9, 1, 99), Reason::UnknownAccount),
        (t(1, 2, 11), Reason::InsufficientBalance),
    ];
    for (seq, (transfer, reason)) in (1..).zip(outcomes) {
        assert_eq!(log.transfer(s, seq, transfer), Status::Aborted(reason));
    }
    assert_eq!(log.prepare(s, 5, t(1, 5, 3)), Status::Yes);
    // Locked *and* too much: contention comes first.
    assert_eq!(log.transfer(s, 6, t(1, 2, 11)), Status::Aborted(Reason::LockContention));
    assert_eq!(log.prepare(s, 7, t(6, 1, 3)), Status::Aborted(Reason::LockContention));
}

#[test]
fn a_duplicate_is_answered_from_its_record() {
    let (mut log, s) = Log::new();
    assert_eq!(log.transfer(s, 1, t(1, 2, 4)), Status::Committed);
    assert_eq!(log.transfer(s, 1, t(1, 2, 4)), Status::Committed);
    assert_eq!(log.balance(1), 6);
    assert_eq!(log.mark(s, 2), Status::Done);
    assert_eq!(log.transfer(s, 1, t(1, 2, 4)), Status::Finished);
    assert_eq!(log.balance(1), 6);
}

#[test]
fn a_fence_beats_a_late_prepare_and_a_late_transfer() {
    let (mut log, s) = Log::new();
    assert_eq!(log.fence(s, 1), Status::Aborted(Reason::NoQuorum));
    assert_eq!(log.prepare(s, 1, t(1, 5, 3)), Status::Aborted(Reason::NoQuorum));
    assert_eq!(log.fence(s, 2), Status::Aborted(Reason::NoQuorum));
    assert_eq!(log.transfer(s, 2, t(1, 2, 3)), Status::Aborted(Reason::NoQuorum));
    assert!(!log.bank.is_locked(AccountId(1)));
}

#[test]
fn holds_keep_the_balance_until_the_outcome() {
    let (mut log, s) = Log::new();
    assert_eq!(log.prepare(s, 1, t(1, 5, 3)), Status::Yes);
    assert_eq!(log.fence(s, 1), Status::Yes);
    assert_eq!((log.balance(1), log.bank.holds().len()), (10, 1));
    assert_eq!(log.outcome(s, 1, true), Status::Done);
    assert_eq!(log.outcome(s, 1, true), Status::Done);
    assert_eq!(log.outcome(s, 1, false), Status::Invalid);
    assert_eq!((log.balance(1), log.bank.holds().len()), (7, 0));
    assert_eq!(log.prepare(s, 2, t(5, 1, 3)), Status::Yes);
    assert_eq!(log.outcome(s, 2, false), Status::Done);
    assert_eq!(log.balance(1), 7);
    // A commit for which this shard never voted is refused and leaves no trace.
    assert_eq!(log.outcome(s, 3, true), Status::Invalid);
    assert_eq!(log.prepare(s, 3, t(1, 5, 1)), Status::Yes);
}

#[test]
fn the_mark_never_passes_an_undecided_yes() {
    let (mut log, s) = Log::new();
    assert_eq!(log.transfer(s, 1, t(1, 2, 1)), Status::Committed);
    assert_eq!(log.prepare(s, 2, t(1, 5, 3)), Status::Yes);
    assert_eq!(log.mark(s, 10), Status::Done);
    assert_eq!(log.transfer(s, 1, t(1, 2, 1)), Status::Finished);
    assert_eq!(log.fence(s, 2), Status::Yes);
    assert_eq!(log.outcome(s, 2, true), Status::Done);
    assert_eq!(log.mark(s, 10), Status::Done);
    assert_eq!(log.fence(s, 2), Status::Finished);
    assert_eq!(log.transfer(s, 10, t(3, 4, 1)), Status::Committed);
}

#[test]
fn beyond_the_window_only_fences_and_outcomes_leave_a_record() {
    let (mut log, s) = Log::new();
    let far = SESSION_WINDOW + 1;
    assert_eq!(log.transfer(s, far, t(1, 2, 1)), Status::Busy);
    assert_eq!(log.prepare(s, far, t(1, 5, 1)), Status::Busy);
    assert_eq!(log.fence(s, far), Status::Aborted(Reason::NoQuorum));
    assert_eq!(log.outcome(s, far + 1, false), Status::Done);
    assert_eq!(log.mark(s, 5), Status::Done);
    // The records came into the window and still hold.
    assert_eq!(log.transfer(s, far, t(1, 2, 1)), Status::Aborted(Reason::NoQuorum));
    assert_eq!(log.prepare(s, far + 1, t(1, 5, 1)), Status::Aborted(Reason::NoQuorum));
    assert_eq!(log.mark(s, 3 * far), Status::Done);
    assert_eq!(log.fence(s, far), Status::Finished);
}

/// What a client may make every server remember is bounded. A register that is there is answered all the same, and there
/// is room again once the mark has passed some.
#[test]
fn registers_beside_the_window_are_no_more_than_it_has() {
    let (mut log, session) = Log::new();
    let first = 1 + SESSION_WINDOW;
    let mut left = SESSION_WINDOW as u32;
    let mut seq = first;
    while left > 0 {
        let count = left.min(command::MAX_COUNT as u32);
        let fenced = log.put(|out| command::put_fence(out, Range { session, first: seq, count }));
        assert!(fenced.iter().all(|s| *s == Status::Aborted(Reason::NoQuorum)), "{fenced:?}");
        (seq, left) = (seq + u64::from(count), left - count);
    }
    assert_eq!(log.fence(session, seq), Status::Busy);
    assert_eq!(log.outcome(session, seq, false), Status::Busy);
    assert_eq!(log.fence(session, seq - 1), Status::Aborted(Reason::NoQuorum));
    assert_eq!(log.fence(session, 1), Status::Aborted(Reason::NoQuorum), "in the window there is room");
    log.mark(session, 2);
    assert_eq!(log.fence(session, seq), Status::Aborted(Reason::NoQuorum));
    assert_eq!(log.fence(session, seq + 1), Status::Busy);
}

/// A fence of four billion sequences fits in 32 bytes, and applying it would stop every server of the shard for good.
#[test]
fn a_block_names_no_more_sequences_than_a_slot_has_room_for() {
    let session = Session::new(ShardId(2), 7);
    for (count, fits) in
        [(command::MAX_COUNT as u32, true), (command::MAX_COUNT as u32 + 1, false), (u32::MAX, false)]
    {
        let mut bytes = Vec::new();
        command::put_fence(&mut bytes, Range { session, first: 1, count });
        assert_eq!(command::check(&bytes).is_ok(), fits, "{count}");
    }
}

#[test]
fn sessions_of_this_shard_open_through_the_log_alone() {
    let (mut log, s) = Log::new();
    let unissued = Session::new(D1, s.number() + 1);
    assert_eq!(log.transfer(unissued, 1, t(1, 2, 1)), Status::Expired);
    assert_eq!(log.fence(unissued, 1), Status::Expired);
    let foreign = Session::new(ShardId(2), 7);
    assert_eq!(log.fence(foreign, 1), Status::Aborted(Reason::NoQuorum));
}

/// A session of the other shard.
fn foreign(number: u64) -> Session {
    Session::new(ShardId(2), number)
}

/// What came too late is a NO, whoever asks and whatever for; what was decided stays so.
#[test]
fn nothing_begins_in_a_closed_session() {
    let (mut log, s) = Log::new();
    assert_eq!(log.transfer(s, 1, t(1, 2, 1)), Status::Committed);
    assert_eq!(log.prepare(s, 2, t(3, 5, 1)), Status::Yes);
    assert_eq!(log.close(s), Status::Yes, "something is in doubt");
    assert_eq!(log.transfer(s, 3, t(1, 2, 1)), Status::Closed);
    assert_eq!(log.prepare(s, 4, t(1, 5, 1)), Status::Closed);
    assert_eq!(log.prepare(s, SESSION_WINDOW + 9, t(1, 5, 1)), Status::Closed, "not busy: it is over");
    assert_eq!((log.fence(s, 5), log.outcome(s, 6, false)), (Status::Closed, Status::Done));
    assert_eq!(log.outcome(s, 7, true), Status::Invalid);
    assert_eq!(log.transfer(s, 1, t(1, 2, 1)), Status::Committed, "from its record");
    assert_eq!((log.fence(s, 2), log.outcome(s, 2, true)), (Status::Yes, Status::Done));
    assert_eq!(log.close(s), Status::Done);
    assert_eq!((log.balance(1), log.balance(3)), (9, 9));
}

#[test]
fn a_session_expires_only_when_it_is_closed_and_nothing_is_in_doubt() {
    let (mut log, s) = Log::new();
    assert_eq!(log.prepare(s, 1, t(1, 5, 3)), Status::Yes);
    assert_eq!(log.expire(s, &[]), Status::Invalid, "it is open");
    assert_eq!(log.close(s), Status::Yes);
    assert_eq!(log.expire(s, &[]), Status::Yes, "the register is all that tells whether to commit");
    assert_eq!(log.fence(s, 1), Status::Yes);
    assert_eq!(log.outcome(s, 1, true), Status::Done);
    assert_eq!((log.expire(s, &[]), log.expire(s, &[])), (Status::Done, Status::Done));
    assert_eq!(log.bank.sessions(), 0);
    assert_eq!(
        (log.close(s), log.mark(s, 5), log.fence(s, 1)),
        (Status::Expired, Status::Expired, Status::Expired)
    );
    assert_eq!(log.transfer(s, 1, t(1, 2, 1)), Status::Expired);
    assert_eq!(log.outcome(s, 1, true), Status::Expired);
    assert_eq!(log.balance(1), 7);
    let BlockResult::Opened(next) = ({
        log.put(command::put_open);
        log.effects.results[0].clone()
    }) else {
        panic!("an open opens")
    };
    assert_eq!(next.number(), s.number() + 1, "no number is issued twice");
    assert_eq!(log.bank.digest(), digest_anew(&log.bank));
}

/// The prepare of an expired session that was never mentioned here would lock its account for ever.
#[test]
fn below_the_floor_nothing_unknown_comes_to_life() {
    let mut log = Log { bank: bank(), effects: Effects::default() };
    assert_eq!(log.fence(foreign(2), 1), Status::Aborted(Reason::NoQuorum));
    assert_eq!(log.expire(foreign(9), &[]), Status::Invalid, "it was never closed here");
    assert_eq!(log.close(foreign(9)), Status::Done);
    assert_eq!(log.expire(foreign(9), &[foreign(2), foreign(4)]), Status::Done);
    for number in [1, 3, 5, 8, 9] {
        assert_eq!(log.prepare(foreign(number), 1, t(1, 5, 1)), Status::Expired, "{number}");
        assert!(log.bank.is_expired(foreign(number)));
    }
    // One that is known, one that was named, one that was issued later.
    for (number, account) in [(2, 1), (4, 2), (10, 3)] {
        assert_eq!(log.prepare(foreign(number), 2, t(account, 5, 1)), Status::Yes, "{number}");
    }
    // What an old leader knew to be alive may have expired since.
    assert_eq!((log.outcome(foreign(4), 2, false), log.close(foreign(4))), (Status::Done, Status::Done));
    assert_eq!(log.expire(foreign(4), &[]), Status::Done);
    assert_eq!((log.close(foreign(10)), log.outcome(foreign(10), 2, false)), (Status::Yes, Status::Done));
    assert_eq!(log.expire(foreign(10), &[foreign(2), foreign(4)]), Status::Done);
    assert_eq!((log.bank.sessions(), log.fence(foreign(4), 1)), (1, Status::Expired));
    assert_eq!(log.bank.digest(), digest_anew(&log.bank));
}

#[test]
fn an_open_beyond_the_bound_is_busy_until_another_session_expires() {
    let bank = bank().with_limits(&Limits { sessions: 2, ..Limits::default() });
    let mut log = Log { bank, effects: Effects::default() };
    let open = |log: &mut Log| {
        log.put(command::put_open);
        match &log.effects.results[0] {
            BlockResult::Opened(session) => Some(*session),
            busy => {
                assert_eq!(busy.unpack(), Some(vec![Status::Busy]));
                assert!(log.effects.crowded);
                None
            }
        }
    };
    let first = open(&mut log).expect("there is room");
    assert_eq!(log.effects.used, [first]);
    assert!(open(&mut log).is_some());
    assert_eq!((open(&mut log), open(&mut log)), (None, None));
    assert_eq!((log.close(first), log.expire(first, &[])), (Status::Done, Status::Done));
    assert!(open(&mut log).is_some_and(|session| session.number() == 3));
    // Nor is there room for numbers that the other shard never issued.
    assert_eq!(log.fence(foreign(7), 1), Status::Aborted(Reason::NoQuorum));
    assert_eq!(log.fence(foreign(8), 1), Status::Aborted(Reason::NoQuorum));
    assert_eq!((log.fence(foreign(9), 1), log.outcome(foreign(9), 1, true)), (Status::Busy, Status::Busy));
}

/// The digest from scratch, to hold the incremental one against.
fn digest_anew(bank: &Bank) -> u64 {
    let mut shares = vec![share(ISSUED, 0, bank.next_session), share(TRAIL, 0, bank.trail)];
    for (account, balance) in (bank.first_account..).zip(bank.accounts.iter().map(Account::balance)) {
        shares.push(share(BALANCE, account, balance));
    }
    bank.holds.iter().for_each(|(id, hold)| shares.push(hold_share(id, hold)));
    for (issuer, floor) in &bank.floors {
        shares.push(share(FLOOR, u64::from(issuer.0), *floor));
    }
    for (session, state) in &bank.sessions {
        shares.push(share(MARK, session.0, state.mark()));
        if state.is_closed() {
            shares.push(share(CLOSED, session.0, 0));
        }
        for seq in state.mark()..state.mark() + 64 {
            let register = state.get(seq);
            if register != Register::Empty {
                shares.push(register_share(TxnId { session: *session, seq }, register));
            }
        }
    }
    shares.into_iter().fold(0, u64::wrapping_add)
}

/// Digests tell whether two servers agree, whatever they were built from, so what goes into one is as fixed as a file
/// format. The first number is what SplitMix64 draws first from the seed 0, mixed twice more; the second is the sum of
/// the shares of a small bank, computed by other means.
#[test]
fn the_digest_is_the_same_in_every_build() {
    assert_eq!(share(1, 0, 0), 0x33fe_8bd4_f9c5_7863);
    let (mut log, s) = Log::new();
    assert_eq!(log.prepare(s, SESSION_WINDOW, t(1, 5, 3)), Status::Yes);
    assert_eq!(log.transfer(s, 3, t(3, 2, 3)), Status::Committed);
    assert_eq!(log.bank.digest(), 0x63cb_5b3b_38c1_ada1);
    assert_eq!(log.outcome(s, SESSION_WINDOW, true), Status::Done);
    assert_eq!(log.mark(s, SESSION_WINDOW + 1), Status::Done);
    // Nothing is left of the lock and of the registers.
    assert_eq!(log.bank.digest(), digest_anew(&log.bank));
}

/// P4: what once differed is not forgotten when nothing of it is left, for snapshots and lists were made meanwhile.
#[test]
fn states_that_have_become_equal_again_have_other_digests() {
    let after = |amount, first: u64, second: u64| {
        let (mut log, s) = Log::new();
        assert_eq!(log.prepare(s, 1, t(1, 5, amount)), Status::Yes);
        assert_eq!(log.outcome(s, 1, false), Status::Done);
        log.transfer(s, first, t(2, 3, 4));
        log.transfer(s, second, t(3, 2, 4));
        log.mark(s, 4);
        log.bank
    };
    let (one, held_more, turned) = (after(1, 2, 3), after(2, 2, 3), after(1, 3, 2));
    for other in [held_more, turned] {
        assert_ne!(one.digest(), other.digest());
        assert_eq!(one, Bank { trail: one.trail, digest: one.digest, ..other });
    }
    assert_eq!(one, after(1, 2, 3));
}

#[test]
fn exactly_what_is_there_can_be_spent() {
    let (mut log, s) = Log::new();
    assert_eq!(log.transfer(s, 1, t(1, 2, 10)), Status::Committed);
    assert_eq!(log.transfer(s, 2, t(1, 2, 1)), Status::Aborted(Reason::InsufficientBalance));
    assert_eq!(log.prepare(s, 3, t(3, 5, 11)), Status::Aborted(Reason::InsufficientBalance));
    assert_eq!(log.prepare(s, 4, t(3, 5, 10)), Status::Yes);
    assert_eq!(log.outcome(s, 4, true), Status::Done);
    assert_eq!((log.balance(1), log.balance(2), log.balance(3)), (0, 20, 0));
    // Whether the other shard has that much is for the other shard to say.
    assert_eq!(log.prepare(s, 5, t(5, 3, 10_000)), Status::Yes);
    assert_eq!(log.outcome(s, 5, true), Status::Done);
    assert_eq!(log.balance(3), 10_000);
}

#[test]
fn accounts_of_other_shards_are_unknown_here() {
    let (mut log, s) = Log::new();
    for account in [0, 5, 9] {
        assert_eq!(log.bank.balance(AccountId(account)), None);
    }
    for (seq, transfer) in (1..).zip([t(1, 5, 1), t(5, 1, 1), t(5, 6, 1)]) {
        assert_eq!(log.transfer(s, seq, transfer), Status::Aborted(Reason::UnknownAccount));
    }
    assert_eq!(log.bank.total(), 40);
}

/// The outcome of a transfer is sent to those that the prepare names: were it wrong about them, a lock would stay.
#[test]
fn a_prepare_names_both_shards_of_its_transfer() {
    let topology = Topology { clusters: 3, servers_per_cluster: 1, accounts: 6, initial_balance: 10 };
    let mut log = Log { bank: Bank::new(topology, ShardId(2)), effects: Effects::default() };
    let s = Session::new(D1, 1);
    let mut seq = 0;
    let mut prepare = |shards: [u16; 2], transfer| {
        seq += 1;
        log.put(|out| command::put_prepare(out, one(s, seq), shards.map(ShardId), &[transfer]))[0]
    };
    let refused = Status::Aborted(Reason::UnknownAccount);
    assert_eq!(prepare([1, 2], t(3, 4, 1)), refused, "both accounts lie here");
    assert_eq!(prepare([1, 2], t(3, 5, 1)), refused, "the receiver's shard is not named");
    assert_eq!(prepare([1, 2], t(5, 3, 1)), refused, "the sender's shard is not named");
    assert_eq!(prepare([1, 3], t(1, 5, 1)), refused, "no account lies here");
    assert_eq!(prepare([1, 2], t(3, 1, 1)), Status::Yes);
    assert_eq!(prepare([2, 3], t(5, 4, 1)), Status::Yes);
}

#[test]
fn effects_say_what_this_slot_brought_and_nothing_else() {
    let (mut log, s) = Log::new();
    let id = |seq| TxnId { session: s, seq };
    let one = |seq| Range::one(id(seq));
    log.transfer(s, 1, t(1, 2, 4));
    assert_eq!(log.effects.committed, [Committed { slot: Slot(2), id: id(1), transfer: t(1, 2, 4) }]);
    log.transfer(s, 2, t(1, 2, 99));
    assert_eq!(log.effects.committed, []);
    log.prepare(s, 3, t(1, 5, 1));
    assert_eq!((&log.effects.committed[..], &log.effects.prepared[..]), (&[][..], &[one(3)][..]));
    log.outcome(s, 3, true);
    assert_eq!(log.effects.committed, [Committed { slot: Slot(5), id: id(3), transfer: t(1, 5, 1) }]);
    assert_eq!((&log.effects.prepared[..], &log.effects.settled[..]), (&[][..], &[one(3)][..]));
    log.prepare(s, 4, t(1, 5, 1));
    log.outcome(s, 4, false);
    assert_eq!((&log.effects.committed[..], &log.effects.settled[..]), (&[][..], &[one(4)][..]));
}

#[test]
fn an_abort_is_said_once_with_its_reason() {
    let (mut log, s) = Log::new();
    let mut said = |put: &mut dyn FnMut(&mut Log)| {
        put(&mut log);
        log.effects.aborted.clone()
    };
    use Reason::*;
    assert_eq!(said(&mut |log| _ = log.transfer(s, 1, t(1, 2, 99))), [Some(InsufficientBalance)]);
    assert_eq!(said(&mut |log| _ = log.transfer(s, 1, t(1, 2, 99))), [], "a repetition");
    assert_eq!(said(&mut |log| _ = log.transfer(s, 2, t(1, 2, 1))), [], "committed");
    assert_eq!(said(&mut |log| _ = log.prepare(s, 3, t(1, 5, 99))), [Some(InsufficientBalance)]);
    assert_eq!(said(&mut |log| _ = log.outcome(s, 3, false)), [], "the outcome of its own NO");
    assert_eq!(said(&mut |log| _ = log.prepare(s, 4, t(1, 5, 1))), [], "in doubt");
    assert_eq!(said(&mut |log| _ = log.prepare(s, 5, t(1, 5, 1))), [Some(LockContention)]);
    assert_eq!(said(&mut |log| _ = log.outcome(s, 4, false)), [None], "it was the other shard that said NO");
    assert_eq!(said(&mut |log| _ = log.outcome(s, 4, false)), [], "a repetition");
    assert_eq!(said(&mut |log| _ = log.outcome(s, 6, false)), [None], "before its prepare");
    assert_eq!(said(&mut |log| _ = log.fence(s, 7)), [Some(NoQuorum)]);
    assert_eq!(said(&mut |log| _ = log.fence(s, 7)), [], "a repetition");
}

proptest! {
    #[test]
    fn money_is_conserved_and_the_digest_is_that_of_the_whole_state(
        steps in prop::collection::vec((0u8..6, 1u64..20, 1u64..9, 1u64..9, 0i64..8), 1..120)
    ) {
        let (mut log, s) = Log::new();
        let mut expected = i128::from(4 * 10i64);
        for (kind, seq, from, to, amount) in steps {
            let transfer = t(from, to, amount);
            let before = log.bank.total() as i128;
            match kind {
                0 | 1 => { log.transfer(s, seq, transfer); }
                2 => { log.prepare(s, seq, transfer); }
                3 => {
                    let id = TxnId { session: s, seq };
                    let delta = log.bank.holds().get(&id).map(|h| {
                        if log.bank.index(h.transfer.from).is_some() { -h.transfer.amount } else { h.transfer.amount }
                    });
                    if log.outcome(s, seq, amount % 2 == 0) == Status::Done && amount % 2 == 0 {
                        expected += i128::from(delta.unwrap_or(0));
                    }
                }
                4 => { log.fence(s, seq); }
                _ => { log.mark(s, seq); }
            }
            if kind != 3 {
                prop_assert_eq!(before, log.bank.total() as i128);
            }
            prop_assert_eq!(expected, log.bank.total() as i128);
            prop_assert_eq!(log.bank.digest(), digest_anew(&log.bank));
            prop_assert_eq!(log.bank.accounts.iter().filter(|account| account.is_locked()).count(), log.bank.holds.len());
        }
    }

    /// T7: of an expired session nothing is executed any more, and its number never comes back; nothing begins in a closed
    /// one; sessions that live are not hurt by the expiry of others.
    #[test]
    fn sessions_end_for_good(
        steps in prop::collection::vec((0u8..8, 1u64..6, 1u64..5, any::<bool>()), 1..150)
    ) {
        let mut log = Log { bank: bank(), effects: Effects::default() };
        let (mut closed, mut expired) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        let used = (1..6).map(foreign).collect::<Vec<_>>();
        for (kind, number, seq, commit) in steps {
            let session = foreign(number);
            let first = log.bank.sessions.get(&session).is_none_or(|s| seq >= s.mark() && s.get(seq) == Register::Empty);
            let status = match kind {
                0 => log.transfer(session, seq, t(1, 2, 1)),
                1 | 2 => log.prepare(session, seq, t(3, 5, 1)),
                3 | 4 => log.outcome(session, seq, commit),
                5 => log.mark(session, seq),
                6 => {
                    let status = log.close(session);
                    closed.extend((status != Status::Expired).then_some(session));
                    status
                }
                _ => {
                    let live: Vec<Session> =
                        used.iter().filter(|s| **s < session && !expired.contains(*s)).copied().collect();
                    let doubt = log.bank.holds().has(session);
                    let status = log.expire(session, &live);
                    prop_assert_eq!(
                        status == Status::Done,
                        expired.contains(&session) || closed.contains(&session) && !doubt
                    );
                    expired.extend((status == Status::Done).then_some(session));
                    continue;
                }
            };
            prop_assert_eq!(status == Status::Expired, expired.contains(&session));
            if kind < 6 && closed.contains(&session) {
                prop_assert!(!(first && matches!(status, Status::Committed | Status::Yes)), "{:?}", status);
            }
            prop_assert!(log.bank.sessions() + expired.len() <= used.len());
            prop_assert_eq!(log.bank.digest(), digest_anew(&log.bank));
        }
    }

    #[test]
    fn commands_from_outside_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if command::check(&bytes).is_ok() {
            let mut bank = bank();
            bank.apply(Slot(1), &Value::from_slice(&bytes), &mut Effects::default());
        }
    }

    #[test]
    fn results_survive_packing(codes in prop::collection::vec(any::<u8>(), 0..70)) {
        let statuses: Vec<Status> = codes.into_iter().filter_map(Status::from_code).collect();
        for common in [Status::Committed, Status::Yes, Status::Done] {
            prop_assert_eq!(BlockResult::pack(common, &statuses).unpack(), Some(statuses.clone()));
        }
    }
}
