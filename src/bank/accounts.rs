//! The accounts of one shard, in chunks that a snapshot shares with the living state until they change.
//!
//! A cut of ten million accounts is then some eighty thousand reference counts, taken between two slots, and what it costs in
//! memory is one copy of each chunk that changes before the cut has been written.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Accounts in a chunk: 1 KiB, copied at most once for each cut. Larger ones would make the slots after a cut slow, which touch
/// many; smaller ones the cut itself, which counts them.
const CHUNK: usize = 128;

/// Units, and whether an undecided transaction locks them (T5), in one word: among millions of accounts nearly every one is a
/// cache miss, and whoever looks at the lock needs the balance next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Account(u64);

/// All units together stay below it ([`Topology::validate`](crate::config::Topology::validate)).
const LOCKED: u64 = 1 << 63;

impl Account {
    #[inline]
    pub fn balance(self) -> u64 {
        self.0 & !LOCKED
    }

    #[inline]
    pub fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }
}

/// A dense array of accounts. Cloning it shares every chunk.
#[derive(Debug)]
pub struct Accounts {
    chunks: Vec<Arc<[Account]>>,
    len: usize,
    /// Whether clones have been made since `shared` was last brought up to date.
    cloned: AtomicBool,
    /// A bit for each chunk: it may be shared. A chunk's count of references stands beside its accounts, and nearly every look
    /// at one would be a cache miss.
    shared: Vec<u64>,
}

impl Clone for Accounts {
    fn clone(&self) -> Accounts {
        self.cloned.store(true, Ordering::Relaxed);
        Accounts::of(self.chunks.clone(), self.len)
    }
}

impl PartialEq for Accounts {
    fn eq(&self, other: &Accounts) -> bool {
        self.chunks == other.chunks
    }
}

impl Eq for Accounts {}

impl Hash for Accounts {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.chunks.hash(state);
    }
}

impl Accounts {
    pub fn new(len: usize, initial: u64) -> Accounts {
        Accounts::collect(len, std::iter::repeat(initial)).expect("B2: all money together fits")
    }

    /// Accounts that nobody locks, with balances from a source; `None` if it yields fewer than `len`, or one beyond all money.
    pub fn collect(len: usize, mut source: impl Iterator<Item = u64>) -> Option<Accounts> {
        let mut chunks = Vec::with_capacity(len.div_ceil(CHUNK));
        for first in (0..len).step_by(CHUNK) {
            let size = CHUNK.min(len - first);
            let fitting = source
                .by_ref()
                .take(size)
                .map_while(|balance| (balance < LOCKED).then_some(Account(balance)));
            let chunk: Arc<[Account]> = fitting.collect();
            if chunk.len() != size {
                return None;
            }
            chunks.push(chunk);
        }
        Some(Accounts::of(chunks, len))
    }

    fn of(chunks: Vec<Arc<[Account]>>, len: usize) -> Accounts {
        let shared = vec![!0; chunks.len().div_ceil(64)];
        Accounts { chunks, len, cloned: AtomicBool::new(false), shared }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// # Panics
    ///
    /// Where there is no such account, as arrays do.
    #[inline]
    pub fn get(&self, index: usize) -> Account {
        self.chunks[index / CHUNK][index % CHUNK]
    }

    /// Returns the balance before.
    #[inline]
    pub fn set_balance(&mut self, index: usize, balance: u64) -> u64 {
        assert!(balance < LOCKED, "B2: all money together fits");
        let account = self.get_mut(index);
        let before = *account;
        *account = Account(balance | (before.0 & LOCKED));
        before.balance()
    }

    /// `false` if it was locked before.
    #[inline]
    pub fn lock(&mut self, index: usize) -> bool {
        let account = self.get_mut(index);
        let free = !account.is_locked();
        account.0 |= LOCKED;
        free
    }

    /// `false` if it was not locked.
    #[inline]
    pub fn unlock(&mut self, index: usize) -> bool {
        let account = self.get_mut(index);
        let locked = account.is_locked();
        account.0 &= !LOCKED;
        locked
    }

    #[inline]
    fn get_mut(&mut self, index: usize) -> &mut Account {
        let chunk = index / CHUNK;
        if *self.cloned.get_mut() || self.shared[chunk / 64] & (1 << (chunk % 64)) != 0 {
            self.own(chunk);
        }
        // SAFETY: nobody makes weak references to chunks, and clones of them are made with `self` only, which is borrowed
        // mutably. `own` has seen that there was none, or has put a new chunk here, and since then `self` was not cloned, or it
        // would have been called now. So this is the only reference to the chunk.
        let chunk = unsafe { &mut *Arc::as_ptr(&self.chunks[chunk]).cast_mut() };
        &mut chunk[index % CHUNK]
    }

    /// Makes sure that nobody else has this chunk.
    #[cold]
    fn own(&mut self, chunk: usize) {
        if std::mem::take(self.cloned.get_mut()) {
            self.shared.fill(!0);
        }
        let own = &mut self.chunks[chunk];
        if Arc::strong_count(own) > 1 {
            *own = Arc::from(&own[..]);
        }
        // What others read before they let go of it, on whatever thread, they have read before it is written.
        fence(Ordering::Acquire);
        self.shared[chunk / 64] &= !(1 << (chunk % 64));
    }

    pub fn iter(&self) -> impl Iterator<Item = Account> + '_ {
        self.chunks.iter().flat_map(|chunk| chunk.iter().copied())
    }

    /// The accounts from `index` on, as far as they lie in one chunk.
    pub fn run(&self, index: usize) -> &[Account] {
        &self.chunks[index / CHUNK][index % CHUNK..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_keeps_what_the_other_changes() {
        for len in [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7] {
            let mut accounts = Accounts::new(len, 10);
            for round in 1..4 {
                let cut = accounts.clone();
                let before: Vec<Account> = cut.iter().collect();
                for index in [0, len / 2, len - 1] {
                    let balance = 1000 * round + index as u64;
                    accounts.set_balance(index, balance);
                    assert!(accounts.lock(index));
                    assert_eq!(accounts.get(index), Account(balance | LOCKED));
                    assert!(accounts.unlock(index));
                }
                assert!(cut.iter().eq(before), "round {round}");
            }
            assert_eq!((accounts.len(), accounts.iter().count()), (len, len));
            assert_eq!(accounts.run(len - 1), [accounts.get(len - 1)]);
            let balances = || accounts.iter().map(Account::balance);
            assert_eq!(Accounts::collect(len, balances()), Some(accounts.clone()));
            assert_eq!(Accounts::collect(len + 1, balances()), None);
        }
    }

    #[test]
    fn an_account_is_locked_once_whatever_its_balance() {
        let mut accounts = Accounts::new(130, 5);
        for index in [0, 63, 64, 129] {
            assert!(
                !accounts.get(index).is_locked() && accounts.lock(index) && accounts.get(index).is_locked()
            );
            assert!(!accounts.lock(index), "it is locked already");
            assert_eq!(
                (accounts.set_balance(index, LOCKED - 1), accounts.get(index).balance()),
                (5, LOCKED - 1)
            );
        }
        assert_eq!(accounts.iter().filter(|account| account.is_locked()).count(), 4);
        for index in [129, 0, 64, 63] {
            assert!(accounts.unlock(index) && !accounts.get(index).is_locked() && !accounts.unlock(index));
            assert_eq!(accounts.set_balance(index, 5), LOCKED - 1);
        }
        assert_eq!(accounts, Accounts::new(130, 5));
        assert_eq!(Accounts::collect(1, [LOCKED].into_iter()), None, "nobody has so much");
    }

    /// It would be taken for a lock.
    #[test]
    #[should_panic(expected = "B2")]
    fn no_account_has_more_than_all_money_together() {
        Accounts::new(1, LOCKED - 1).set_balance(0, LOCKED);
    }

    #[test]
    fn only_chunks_that_change_are_copied() {
        let mut accounts = Accounts::new(3 * CHUNK, 1);
        let cut = accounts.clone();
        accounts.set_balance(CHUNK, 2);
        let shared: Vec<bool> =
            accounts.chunks.iter().zip(&cut.chunks).map(|(a, b)| Arc::ptr_eq(a, b)).collect();
        assert_eq!(shared, [true, false, true]);
    }
}
