//! Which accounts of a shard are locked (T5): a bit for each, so that looking costs next to nothing.

/// By index of the account, as its balance.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Locks {
    words: Vec<u64>,
    /// How many are set.
    count: usize,
}

impl Locks {
    /// None of so many accounts is locked.
    pub fn new(accounts: usize) -> Locks {
        Locks { words: vec![0; accounts.div_ceil(64)], count: 0 }
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.count
    }

    #[inline]
    pub fn is_locked(&self, index: usize) -> bool {
        // Most shards have none most of the time.
        self.count > 0 && self.words[index / 64] & bit(index) != 0
    }

    /// `false` if it was locked before.
    #[inline]
    pub fn lock(&mut self, index: usize) -> bool {
        let free = self.words[index / 64] & bit(index) == 0;
        self.words[index / 64] |= bit(index);
        self.count += usize::from(free);
        free
    }

    /// `false` if it was not locked.
    #[inline]
    pub fn unlock(&mut self, index: usize) -> bool {
        let locked = self.words[index / 64] & bit(index) != 0;
        self.words[index / 64] &= !bit(index);
        self.count -= usize::from(locked);
        locked
    }
}

fn bit(index: usize) -> u64 {
    1 << (index % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_locked_once() {
        let mut locks = Locks::new(130);
        for index in [0, 63, 64, 129] {
            assert!(!locks.is_locked(index) && locks.lock(index) && locks.is_locked(index));
            assert!(!locks.lock(index), "it is locked already");
        }
        assert_eq!((locks.count(), locks.is_locked(1), locks.is_locked(65)), (4, false, false));
        for index in [129, 0, 64, 63] {
            assert!(locks.unlock(index) && !locks.is_locked(index) && !locks.unlock(index));
        }
        assert_eq!(locks, Locks::new(130));
    }
}
