//! The balances of one shard, in chunks that a snapshot shares with the living state until they change.
//!
//! A cut of ten million balances is then some eighty thousand reference counts, taken between two slots, and what it costs in
//! memory is one copy of each chunk that changes before the cut has been written.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Accounts in a chunk: 1 KiB, copied at most once for each cut. Larger ones would make the slots after a cut slow, which touch
/// many; smaller ones the cut itself, which counts them.
const CHUNK: usize = 128;

/// A dense array of units. Cloning it shares every chunk.
#[derive(Debug)]
pub struct Balances {
    chunks: Vec<Arc<[u64]>>,
    len: usize,
    /// Whether clones have been made since `shared` was last brought up to date.
    cloned: AtomicBool,
    /// A bit for each chunk: it may be shared. A chunk's count of references stands beside its balances, and nearly every look
    /// at one would be a cache miss.
    shared: Vec<u64>,
}

impl Clone for Balances {
    fn clone(&self) -> Balances {
        self.cloned.store(true, Ordering::Relaxed);
        Balances::of(self.chunks.clone(), self.len)
    }
}

impl PartialEq for Balances {
    fn eq(&self, other: &Balances) -> bool {
        self.chunks == other.chunks
    }
}

impl Eq for Balances {}

impl Hash for Balances {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.chunks.hash(state);
    }
}

impl Balances {
    pub fn new(len: usize, initial: u64) -> Balances {
        Balances::collect(len, std::iter::repeat(initial)).expect("there is no end of them")
    }

    /// Balances from a source that yields at least `len` of them; `None` if it does not.
    pub fn collect(len: usize, mut source: impl Iterator<Item = u64>) -> Option<Balances> {
        let mut chunks = Vec::with_capacity(len.div_ceil(CHUNK));
        for first in (0..len).step_by(CHUNK) {
            let size = CHUNK.min(len - first);
            let chunk: Arc<[u64]> = source.by_ref().take(size).collect();
            if chunk.len() != size {
                return None;
            }
            chunks.push(chunk);
        }
        Some(Balances::of(chunks, len))
    }

    fn of(chunks: Vec<Arc<[u64]>>, len: usize) -> Balances {
        let shared = vec![!0; chunks.len().div_ceil(64)];
        Balances { chunks, len, cloned: AtomicBool::new(false), shared }
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

    /// Returns what was there before.
    #[inline]
    pub fn set(&mut self, index: usize, balance: u64) -> u64 {
        let chunk = index / CHUNK;
        if *self.cloned.get_mut() || self.shared[chunk / 64] & (1 << (chunk % 64)) != 0 {
            self.own(chunk);
        }
        // SAFETY: nobody makes weak references to chunks, and clones of them are made with `self` only, which is borrowed
        // mutably. `own` has seen that there was none, or has put a new chunk here, and since then `self` was not cloned, or it
        // would have been called now. So this is the only reference to the chunk.
        let chunk = unsafe { &mut *Arc::as_ptr(&self.chunks[chunk]).cast_mut() };
        std::mem::replace(&mut chunk[index % CHUNK], balance)
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
