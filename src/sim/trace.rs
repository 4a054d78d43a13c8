//! The readable log of a run, and the hash that says whether two runs were the same.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

/// Lines that are kept for the report of a violation.
const RECENT: usize = 400;

/// What becomes of the log of everything that happens.
#[derive(Clone, Debug)]
pub enum Trace {
    Off,
    /// Kept in [`crate::sim::World::log`].
    Keep,
    /// Given away line by line, so that it is there even if the run panics.
    Tell(fn(&str)),
    /// The last lines, held outside of the world, so that they outlive a run that panics.
    Recent(Rc<RefCell<VecDeque<String>>>),
}

impl Trace {
    pub fn is_off(&self) -> bool {
        matches!(self, Trace::Off)
    }
}

pub fn keep_recent(lines: &RefCell<VecDeque<String>>, line: String) {
    let mut lines = lines.borrow_mut();
    if lines.len() == RECENT {
        lines.pop_front();
    }
    lines.push_back(line);
}

/// A running hash over every packet that arrives and every harm that is done. Equal for equal runs of one build.
#[derive(Clone, Debug, Default)]
pub struct TraceHash(DefaultHasher);

impl TraceHash {
    pub fn add(&mut self, what: &impl Hash) {
        what.hash(&mut self.0);
    }

    pub fn value(&self) -> u64 {
        self.0.finish()
    }
}
