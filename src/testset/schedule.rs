//! Which rows may run side by side.
//!
//! Every outcome must equal running the rows one after the other in file order. Two rows can influence each other only
//! through an account that both touch, so each account has a queue of the unfinished rows that touch it, in file
//! order, and a row runs when it stands at the head of every queue that it is in. The lowest unfinished row is always
//! at the head of all its queues: nothing can wait in a circle, and nothing starves.
//!
//! Deliberately absent: clocks and servers. Failures and recoveries are not rows to it; the caller waits for
//! [`Scheduler::is_idle`] before it changes who is up.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::types::AccountId;

/// Hands out rows in file order, as far as they may run together. A row is named by its index, which must grow.
#[derive(Clone, Debug)]
pub struct Scheduler {
    max_in_flight: usize,
    race: bool,
    /// Unfinished rows per account, in file order. Only ever looked up by key, so its own order cannot show.
    queues: HashMap<AccountId, VecDeque<usize>>,
    /// Rows that were pushed and not handed out yet, and rows in flight.
    rows: HashMap<usize, Held>,
    /// Rows that head all their queues and wait only for the bound; the lowest goes first.
    ready: BTreeSet<usize>,
    in_flight: usize,
    last: Option<usize>,
}

#[derive(Clone, Debug)]
struct Held {
    /// Each once.
    accounts: Vec<AccountId>,
    /// Queues that it does not head yet.
    behind: usize,
    started: bool,
}

impl Scheduler {
    /// At most `max_in_flight` rows (at least 1) run at a time. With `race`, rows that share an account do so too.
    pub fn new(max_in_flight: usize, race: bool) -> Scheduler {
        assert!(max_in_flight > 0, "with no row in flight nothing would ever run");
        Scheduler {
            max_in_flight,
            race,
            queues: HashMap::new(),
            rows: HashMap::new(),
            ready: BTreeSet::new(),
            in_flight: 0,
            last: None,
        }
    }

    /// Adds the next row of the file and the accounts that it touches.
    pub fn push(&mut self, index: usize, accounts: &[AccountId]) {
        assert!(self.last.is_none_or(|last| last < index), "row {index} pushed out of file order");
        self.last = Some(index);
        let mut held = Held { accounts: Vec::new(), behind: 0, started: false };
        if !self.race {
            for account in accounts {
                // A transfer from an account to itself stands in its queue once.
                if !held.accounts.contains(account) {
                    held.accounts.push(*account);
                    let queue = self.queues.entry(*account).or_default();
                    held.behind += usize::from(!queue.is_empty());
                    queue.push_back(index);
                }
            }
        }
        if held.behind == 0 {
            self.ready.insert(index);
        }
        self.rows.insert(index, held);
    }

    /// The next row to run now, if one may. It counts as in flight until it is finished.
    #[expect(
        clippy::should_implement_trait,
        reason = "no iterator: None now may be Some after the next finish"
    )]
    pub fn next(&mut self) -> Option<usize> {
        if self.in_flight == self.max_in_flight {
            return None;
        }
        let index = self.ready.pop_first()?;
        self.in_flight += 1;
        self.rows.get_mut(&index).expect("a ready row is held").started = true;
        Some(index)
    }

    /// The outcome of a row is there (or nobody can know it yet): what it held back may go on.
    pub fn finish(&mut self, index: usize) {
        let row = self.rows.remove(&index);
        let row =
            row.filter(|r| r.started).unwrap_or_else(|| panic!("row {index} finished but not in flight"));
        self.in_flight -= 1;
        for account in row.accounts {
            let queue = self.queues.get_mut(&account).expect("a running row stands in its queues");
            assert_eq!(
                queue.pop_front(),
                Some(index),
                "row {index} ran ahead of its turn on account {account}"
            );
            let Some(head) = queue.front().copied() else {
                self.queues.remove(&account);
                continue;
            };
            let held = self.rows.get_mut(&head).expect("a queued row is held");
            held.behind -= 1;
            if held.behind == 0 {
                self.ready.insert(head);
            }
        }
    }

    /// Whether this row was handed out and is not finished.
    pub fn is_in_flight(&self, index: usize) -> bool {
        self.rows.get(&index).is_some_and(|row| row.started)
    }

    /// Rows handed out and not finished.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Rows pushed and not handed out yet.
    pub fn waiting(&self) -> usize {
        self.rows.len() - self.in_flight
    }

    /// Everything that was pushed is finished.
    pub fn is_idle(&self) -> bool {
        self.rows.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_wait_for_earlier_rows_on_their_accounts() {
        let [a, b, c, d] = [1, 2, 3, 4].map(AccountId);
        let mut s = Scheduler::new(10, false);
        s.push(0, &[a, b]);
        s.push(1, &[b, c]);
        s.push(2, &[c, d]);
        s.push(3, &[d]);
        s.push(4, &[AccountId(9)]);
        assert_eq!(s.next(), Some(0));
        assert_eq!(s.next(), Some(4), "shares nothing");
        assert_eq!(s.next(), None, "1 waits for 0, 2 for 1, 3 for 2");
        assert_eq!((s.in_flight(), s.waiting()), (2, 3));
        s.finish(0);
        assert_eq!((s.next(), s.next()), (Some(1), None));
        s.finish(1);
        assert_eq!((s.next(), s.next()), (Some(2), None));
        s.finish(2);
        assert_eq!(s.next(), Some(3));
        s.finish(3);
        assert!(!s.is_idle());
        s.finish(4);
        assert!(s.is_idle());
    }

    #[test]
    fn an_account_twice_in_a_row_does_not_wait_for_itself() {
        let mut s = Scheduler::new(1, false);
        s.push(0, &[AccountId(1), AccountId(1)]);
        s.push(1, &[AccountId(1)]);
        assert_eq!((s.next(), s.next()), (Some(0), None));
        s.finish(0);
        assert_eq!(s.next(), Some(1));
    }

    #[test]
    fn a_race_is_bounded_but_holds_nothing_back() {
        let mut s = Scheduler::new(2, true);
        for row in 0..3 {
            s.push(row, &[AccountId(1)]);
        }
        assert_eq!((s.next(), s.next(), s.next()), (Some(0), Some(1), None));
        s.finish(1);
        assert_eq!(s.next(), Some(2));
    }

    proptest! {
        /// Whatever finishes first: conflicting rows start and finish in file order, the bound holds, a row that may run is
        /// handed out at once, and every row runs.
        #[test]
        fn conflicting_rows_keep_file_order(
            rows in proptest::collection::vec(proptest::collection::vec((0..6u64).prop_map(AccountId), 0..3), 1..60),
            bound in 1..8usize,
            race in any::<bool>(),
            choices in proptest::collection::vec(any::<prop::sample::Index>(), 240),
        ) {
            let mut choices = choices.into_iter();
            let mut scheduler = Scheduler::new(bound, race);
            let conflict = |a: usize, b: usize| !race && rows[a].iter().any(|x| rows[b].contains(x));
            let mut pushed = 0;
            let mut flying: Vec<usize> = Vec::new();
            let mut started = BTreeSet::new();
            let mut finished = BTreeSet::new();
            while finished.len() < rows.len() {
                // Push some, in bursts, so that rows also arrive while others run.
                let burst = choices.next().map_or(rows.len(), |c| c.index(4));
                for _ in 0..burst.min(rows.len() - pushed) {
                    scheduler.push(pushed, &rows[pushed]);
                    pushed += 1;
                }
                while let Some(row) = scheduler.next() {
                    prop_assert!(row < pushed && started.insert(row), "row {} once", row);
                    for earlier in (0..row).filter(|e| conflict(*e, row)) {
                        prop_assert!(finished.contains(&earlier), "row {} overtook {}", row, earlier);
                    }
                    flying.push(row);
                    prop_assert!(flying.len() <= bound);
                }
                prop_assert_eq!(scheduler.in_flight(), flying.len());
                prop_assert_eq!(scheduler.waiting(), pushed - started.len());
                if flying.len() < bound {
                    for row in (0..pushed).filter(|r| !started.contains(r)) {
                        let held = (0..row).any(|e| !finished.contains(&e) && conflict(e, row));
                        prop_assert!(held, "row {} is free but was not handed out", row);
                    }
                }
                if !flying.is_empty() {
                    let at = choices.next().map_or(0, |c| c.index(flying.len()));
                    let row = flying.swap_remove(at);
                    scheduler.finish(row);
                    finished.insert(row);
                }
            }
            prop_assert!(scheduler.is_idle());
        }
    }
}
