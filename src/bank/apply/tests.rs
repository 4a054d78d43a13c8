//! Properties of the state machine that need no log around it.

use proptest::prelude::*;

use super::*;
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
        let mut log = Log { bank: bank(), effects: Effects::with_history() };
        log.put(command::put_open);
        let BlockResult::Opened(session) = log.effects.results[0] else { panic!("an open opens") };
        (log, session)
    }

    fn put(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Vec<Status> {
        let mut bytes = Vec::new();
        encode(&mut bytes);
        assert_eq!(command::check(&bytes), Ok(1));
        let slot = self.bank.applied().next();
        self.bank.apply(slot, &Value::from_slice(&bytes), &mut self.effects);
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
    assert_eq!(log.bank.locked_by(AccountId(1)), None);
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

/// The digest from scratch, to hold the incremental one against.
fn digest_anew(bank: &Bank) -> u64 {
    let mut fresh = Bank::new(bank.topology, bank.shard);
    for (index, balance) in bank.balances.iter().enumerate() {
        fresh.set_balance(index, *balance);
    }
    fresh.swap_share(ISSUED, 0, Some(1), Some(bank.next_session));
    for (account, id) in &bank.locks {
        fresh.swap_share(LOCK, account.0, None, Some(id.session.0 ^ id.seq.rotate_left(32)));
    }
    for (session, state) in &bank.sessions {
        fresh.swap_share(MARK, session.0, None, Some(state.mark()));
        for seq in state.mark()..state.mark() + 64 {
            let register = state.get(seq);
            if register != Register::Empty {
                let share = register_share(TxnId { session: *session, seq }, register);
                fresh.digest = fresh.digest.wrapping_add(share);
            }
        }
    }
    fresh.digest
}

proptest! {
    #[test]
    fn money_is_conserved_and_the_digest_depends_on_the_state_alone(
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
            prop_assert_eq!(log.bank.locks.len(), log.bank.holds.len());
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
