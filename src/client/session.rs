//! Where transfers get their ids.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::bank::named_window;
use crate::client::{Bank, Error, Receipt};
use crate::config::Limits;
use crate::txn::{Op, Outcome};
use crate::types::{self, AccountId, Transfer, TxnId};

/// Gives transfers their ids and carries them out. Clones share it: none of them gets an id of another one.
///
/// A session of the bank has 4096 ids and ends when it was not used for long. This one is followed by another in time, all by
/// itself, so that it never ends; an id that was taken and not submitted holds for half of `session_idle_timeout_ms`, which
/// is five minutes by default.
#[derive(Clone)]
pub struct Session {
    bank: Bank,
    ids: Arc<Mutex<Ids>>,
}

/// What is left of the session that is in use.
struct Ids {
    session: types::Session,
    next: u64,
    last: u64,
    /// From then on another one is taken: this one may be closed when its ids come to be used.
    stale_at: Option<Instant>,
}

impl Session {
    pub(super) fn open(bank: Bank) -> Result<Session, Error> {
        let ids = Ids::open(&bank, bank.deadline())?;
        Ok(Session { bank, ids: Arc::new(Mutex::new(ids)) })
    }

    /// The same session with another time-out for each call, up to a day.
    pub fn with_timeout(&self, timeout: Duration) -> Session {
        Session { bank: self.bank.with_timeout(timeout), ids: self.ids.clone() }
    }

    /// An id for one transfer, never given to anybody else. Nothing is sent, but if another session has to be opened.
    ///
    /// # Errors
    ///
    /// As of [`Bank::session`].
    pub fn next_id(&self) -> Result<TxnId, Error> {
        Ok(self.next_ids(1)?[0])
    }

    /// As many ids, in ascending order, possibly of more than one session.
    ///
    /// # Errors
    ///
    /// As of [`Bank::session`].
    pub fn next_ids(&self, count: usize) -> Result<Vec<TxnId>, Error> {
        self.take_ids(count, self.bank.deadline())
    }

    /// Moves `amount` units, at least 1, from one account to another one, under the next id.
    ///
    /// # Errors
    ///
    /// Those of [`Session::next_id`], of which nothing comes, and those of [`Session::submit`].
    pub fn transfer(&self, from: AccountId, to: AccountId, amount: i64) -> Result<Receipt, Error> {
        self.batch(&[Transfer { from, to, amount }])?.remove(0)
    }

    /// Carries out many transfers under the next ids, as [`Session::submit_all`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Session::next_ids`]: nothing was sent. What became of each transfer stands in the list.
    pub fn batch(&self, transfers: &[Transfer]) -> Result<Vec<Result<Receipt, Error>>, Error> {
        let deadline = self.bank.deadline();
        let ids = self.take_ids(transfers.len(), deadline)?;
        let orders: Vec<(TxnId, Transfer)> = ids.into_iter().zip(transfers.iter().copied()).collect();
        Ok(self.carry_out(&orders, deadline))
    }

    /// Carries out a transfer under an id that this session gave out.
    ///
    /// # Errors
    ///
    /// [`Error::Aborted`] with the reason, [`Error::SessionExpired`] if the id was kept for too long,
    /// [`Error::NoSuchId`], [`Error::Broken`], and [`Error::Unknown`] if nobody could say until the time-out. The module
    /// documentation says what to do then.
    pub fn submit(&self, id: TxnId, transfer: Transfer) -> Result<Receipt, Error> {
        self.submit_all(&[(id, transfer)]).remove(0)
    }

    /// Carries out many transfers together and returns what became of each, in their order. Those that share no account
    /// are under way at the same time; each other waits for those before it that share one, so that the outcomes are as if
    /// one came after the other. The time-out is that of them all.
    pub fn submit_all(&self, orders: &[(TxnId, Transfer)]) -> Vec<Result<Receipt, Error>> {
        self.carry_out(orders, self.bank.deadline())
    }

    fn carry_out(&self, orders: &[(TxnId, Transfer)], deadline: Instant) -> Vec<Result<Receipt, Error>> {
        let results = self.bank.carry_out(orders, deadline);
        // The bank may close a session early, when many are wanted; and a clock may have stood still.
        let expired = results.iter().find_map(|result| match result {
            Err(Error::SessionExpired { id, .. }) => Some(id.session),
            _ => None,
        });
        if let Some(expired) = expired
            && let Some(mut ids) = self.ids.try_lock_until(deadline)
            && ids.session == expired
        {
            ids.stale_at = Some(Instant::now());
        }
        results
    }

    fn take_ids(&self, count: usize, deadline: Instant) -> Result<Vec<TxnId>, Error> {
        // Another thread may be waiting for the next session.
        let Some(mut ids) = self.ids.try_lock_until(deadline) else {
            return Err(Error::Unavailable { reason: None });
        };
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            if ids.next > ids.last || ids.stale_at.is_some_and(|at| at <= Instant::now()) {
                *ids = Ids::open(&self.bank, deadline)?;
            }
            taken.push(TxnId { session: ids.session, seq: ids.next });
            ids.next += 1;
        }
        Ok(taken)
    }
}

impl Ids {
    fn open(bank: &Bank, deadline: Instant) -> Result<Ids, Error> {
        // Counted from before the bank does, so that this side is never the later one.
        let asked_at = Instant::now();
        let idle_ms = bank.shared.config.settings.timeouts.session_idle_timeout_ms;
        match bank.ask(Op::Open, deadline)? {
            Outcome::Opened(session) => Ok(Ids {
                session,
                next: 1,
                last: named_window(Limits::default().session_window),
                stale_at: (idle_ms > 0).then(|| asked_at + Duration::from_millis(idle_ms / 2)),
            }),
            other => unreachable!("the coordinator answers an opening with {other:?}"),
        }
    }
}
