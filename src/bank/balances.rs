//! The balances of one shard, in chunks that a snapshot shares with the living state until they change.
//!
//! A cut of ten million balances is then some eighty thousand reference counts, taken between two slots, and what it costs in
//! memory is one copy of each chunk that changes before the cut has been written.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// Accounts in a chunk: 1 KiB, copied at most once for each cut. Larger ones would make the slots after a cut slow, which touch
/// many; smaller ones the cut itself, which counts them.
const CHUNK: usize = 128;

/// A dense array of units. Cloning it shares every chunk.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Balances {
    chunks: Vec<Arc<[u64]>>,
    len: usize,
}

impl Balances {
    pub fn new(len: usize, initial: u64) -> Balances {
        let mut balances = Balances { chunks: Vec::with_capacity(len.div_ceil(CHUNK)), len: 0 };
        while balances.len < len {
            let size = CHUNK.min(len - balances.len);
            balances.chunks.push(vec![initial; size].into());
            balances.len += size;
        }
        balances
    }

    /// Balances from a source that yields exactly `len` of them.
    pub fn collect(len: usize, mut source: impl Iterator<Item = u64>) -> Option<Balances> {
        let mut balances = Balances { chunks: Vec::with_capacity(len.div_ceil(CHUNK)), len: 0 };
        while balances.len < len {
            let size = CHUNK.min(len - balances.len);
            let chunk: Arc<[u64]> = source.by_ref().take(size).collect();
            if chunk.len() != size {
                return None;
            }
            balances.chunks.push(chunk);
            balances.len += size;
        }
        Some(balances)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// # Panics
    ///
    /// Where there is no such account, as arrays do.
    #[inline]
    pub fn get(&self, index: usize) -> u64 {
        self.chunks[index / CHUNK][index % CHUNK]
    }

    /// Reads what [`Balances::get`] and [`Balances::set`] will, to no other end than that it is in the processor's cache then.
    #[inline]
    pub fn warm(&self, index: usize) -> u64 {
        let chunk = &self.chunks[index / CHUNK];
        Arc::strong_count(chunk) as u64 ^ chunk[index % CHUNK]
    }

    /// Returns what was there before.
    #[inline]
    pub fn set(&mut self, index: usize, balance: u64) -> u64 {
        let chunk = &mut self.chunks[index / CHUNK];
        if Arc::strong_count(chunk) > 1 {
            *chunk = Arc::from(&chunk[..]);
        }
        // As `Arc::get_mut` would, once others have let go of it on whatever thread; without its locked instruction, which costs
        // as much as all else here.
        fence(Ordering::Acquire);
        // SAFETY: nobody makes weak references to chunks, and clones are made of `self` only, which is borrowed mutably; so
        // this is the only reference to the chunk.
        let chunk = unsafe { &mut *Arc::as_ptr(chunk).cast_mut() };
        std::mem::replace(&mut chunk[index % CHUNK], balance)
    }

    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.iter().flat_map(|chunk| chunk.iter().copied())
    }

    /// The balances from `index` on, as far as they lie in one chunk.
    pub fn run(&self, index: usize) -> &[u64] {
        &self.chunks[index / CHUNK][index % CHUNK..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_keeps_what_the_other_changes() {
        for len in [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7] {
            let mut balances = Balances::new(len, 10);
            let cut = balances.clone();
            for index in [0, len / 2, len - 1] {
                balances.set(index, 1000 + index as u64);
                assert_eq!((balances.get(index), cut.get(index)), (1000 + index as u64, 10));
            }
            assert_eq!((balances.len(), balances.iter().count()), (len, len));
            assert!(cut.iter().all(|b| b == 10));
            assert_eq!(balances.run(len - 1), [balances.get(len - 1)]);
            let again = Balances::collect(len, balances.iter()).expect("as many as asked for");
            assert_eq!(again, balances);
            assert_eq!(Balances::collect(len + 1, balances.iter()), None);
        }
    }

    #[test]
    fn only_chunks_that_change_are_copied() {
        let mut balances = Balances::new(3 * CHUNK, 1);
        let cut = balances.clone();
        balances.set(CHUNK, 2);
        let shared: Vec<bool> =
            balances.chunks.iter().zip(&cut.chunks).map(|(a, b)| Arc::ptr_eq(a, b)).collect();
        assert_eq!(shared, [true, false, true]);
    }
}
