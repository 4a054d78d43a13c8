//! Exactly-once identities (B3): what a shard remembers of the transactions of one session.
//!
//! One byte per sequence in a ring that starts at the client's mark. For a cross-shard transaction that byte *is* the
//! write-once vote register of T1; for a transfer inside the shard it is the recorded outcome.

use std::collections::{BTreeMap, VecDeque};

use crate::bank::Status;
use crate::bank::image::SessionImage;
use crate::config::limits::SESSION_WINDOW;
use crate::types::{Reason, Transfer, Value};

/// How many sequences of a session a client may name, if `window` is that of sessions. They are never forgotten before the
/// session is: only the client knows which it will repeat.
pub fn named_window(window: u64) -> u64 {
    (window / 16).max(4).min(window)
}

/// A recorded outcome or vote. `Empty` means that no decided entry mentioned the sequence yet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Register {
    Empty,
    Committed,
    /// Aborted inside the shard, or a vote of NO.
    No(Reason),
    Yes,
    YesCommitted,
    YesAborted,
}

impl Register {
    #[inline]
    pub fn code(self) -> u8 {
        match self {
            Register::Empty => 0,
            Register::No(reason) => reason as u8,
            Register::Committed => 0x40,
            Register::Yes => 0x41,
            Register::YesCommitted => 0x42,
            Register::YesAborted => 0x43,
        }
    }

    #[inline]
    fn try_from_code(code: u8) -> Option<Register> {
        Some(match code {
            0 => Register::Empty,
            0x40 => Register::Committed,
            0x41 => Register::Yes,
            0x42 => Register::YesCommitted,
            0x43 => Register::YesAborted,
            _ => Register::No(Reason::from_code(code)?),
        })
    }

    #[inline]
    fn from_code(code: u8) -> Register {
        Register::try_from_code(code).expect("B3: the ring holds what `code` wrote")
    }

    /// How a retry is answered from the record.
    #[inline]
    pub fn status(self) -> Option<Status> {
        Some(match self {
            Register::Empty => return None,
            Register::Committed => Status::Committed,
            Register::No(reason) => Status::Aborted(reason),
            Register::Yes => Status::Yes,
            Register::YesCommitted => Status::YesCommitted,
            Register::YesAborted => Status::YesAborted,
        })
    }
}

/// One session, as one shard knows it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SessionState {
    mark: u64,
    /// Sequences from the mark on that transfers and prepares may use.
    window: u64,
    /// Registers of the sequences from `mark` on; what lies behind its end is empty.
    ring: VecDeque<u8>,
    /// The transfers of those that a client named. A register is that of its transfer only.
    names: BTreeMap<u64, Transfer>,
    /// Registers beyond the window, no more than it has: fences and outcomes may set them, transfers and prepares may not.
    beside: BTreeMap<u64, u8>,
    /// What is empty is a NO and stays one (T7).
    closed: bool,
    /// Its issuer has opened it for named transactions only. Other shards do not know.
    naming: bool,
}

impl SessionState {
    pub fn new(window: u64) -> SessionState {
        let (ring, names, beside) = (VecDeque::new(), BTreeMap::new(), BTreeMap::new());
        SessionState { mark: 1, window, ring, names, beside, closed: false, naming: false }
    }

    pub fn is_naming(&self) -> bool {
        self.naming
    }

    pub fn set_naming(&mut self) {
        self.naming = true;
    }

    #[inline]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Every register that is not empty.
    pub fn registers(&self) -> impl Iterator<Item = (u64, Register)> + '_ {
        let ring = (self.mark..).zip(&self.ring).filter(|(_, code)| **code != 0);
        let beside = self.beside.iter().map(|(seq, code)| (*seq, code));
        ring.chain(beside).map(|(seq, code)| (seq, Register::from_code(*code)))
    }

    #[inline]
    pub fn mark(&self) -> u64 {
        self.mark
    }

    /// Whether a transfer or prepare with this sequence may set a register.
    #[inline]
    pub fn in_window(&self, seq: u64) -> bool {
        seq < self.mark + self.window
    }

    /// The same for one that a client named; these cost more memory.
    pub fn in_named_window(&self, seq: u64) -> bool {
        seq < self.mark + named_window(self.window)
    }

    /// The transfer of a register that was set by its name.
    pub fn name(&self, seq: u64) -> Option<Transfer> {
        self.names.get(&seq).copied()
    }

    pub fn names(&self) -> impl Iterator<Item = (u64, Transfer)> + '_ {
        self.names.iter().map(|(seq, transfer)| (*seq, *transfer))
    }

    /// Says whose the register of a sequence is.
    pub fn set_name(&mut self, seq: u64, transfer: Transfer) {
        self.names.insert(seq, transfer);
    }

    /// Whether a fence or an outcome may set the register of this sequence. The client's oldest transaction is always in
    /// the window, and what is closed needs no registers: so nothing waits for ever for one beside it to become free.
    #[inline]
    pub fn has_room(&self, seq: u64) -> bool {
        self.in_window(seq) || (self.beside.len() as u64) < self.window
    }

    /// The register of a sequence at or above the mark.
    #[inline]
    pub fn get(&self, seq: u64) -> Register {
        let code = match self.ring.get((seq - self.mark) as usize) {
            Some(code) => *code,
            None => self.beside.get(&seq).copied().unwrap_or(0),
        };
        Register::from_code(code)
    }

    /// Sets the register of a sequence at or above the mark and returns the one before.
    #[inline]
    pub fn set(&mut self, seq: u64, register: Register) -> Register {
        let index = (seq - self.mark) as usize;
        if let Some(code) = self.ring.get_mut(index) {
            return Register::from_code(std::mem::replace(code, register.code()));
        }
        // Most sequences are used in their order.
        if index == self.ring.len() && self.in_window(seq) {
            self.ring.push_back(register.code());
            return Register::Empty;
        }
        let before = self.get(seq);
        if self.in_window(seq) {
            self.ring.resize(index + 1, 0);
            self.ring[index] = register.code();
        } else {
            self.beside.insert(seq, register.code());
        }
        before
    }

    pub fn set_window(&mut self, window: u64) {
        self.window = window;
        self.refill();
    }

    /// How many votes of YES have no outcome yet.
    pub fn undecided(&self) -> usize {
        self.registers().filter(|(_, register)| *register == Register::Yes).count()
    }

    pub fn is_undecided(&self, seq: u64) -> bool {
        seq >= self.mark && self.get(seq) == Register::Yes
    }

    pub(super) fn image(&self) -> SessionImage {
        let ring: Vec<u8> = self.ring.iter().copied().collect();
        let beside = self.beside.iter().map(|(seq, code)| (*seq, *code)).collect();
        let names = self.names.iter().map(|(seq, transfer)| (*seq, *transfer)).collect();
        let SessionState { mark, closed, naming, .. } = *self;
        SessionImage { mark, ring: Value(ring.into()), names, beside, closed, naming }
    }

    /// A session with the usual window. `Err` if no session looks like this.
    pub(super) fn from_image(image: SessionImage) -> Result<SessionState, String> {
        let SessionImage { mark, ring, names, beside, closed, naming } = image;
        let known = |code: &u8| Register::try_from_code(*code).is_some();
        let beyond = |seq: &u64| *seq >= mark + ring.len() as u64;
        if mark == 0 || mark > 1 << 63 || !ring.0.iter().all(known) {
            return Err("no such register".into());
        }
        if !beside.iter().all(|(seq, code)| beyond(seq) && known(code)) {
            return Err("no such register beside the ring".into());
        }
        let (ring, names, beside) =
            (ring.0.iter().copied().collect(), names.into_iter().collect(), beside.into_iter().collect());
        let state = SessionState { mark, window: SESSION_WINDOW, ring, names, beside, closed, naming };
        if state.names.keys().any(|seq| *seq < mark || state.get(*seq) == Register::Empty) {
            return Err("a name without a register".into());
        }
        Ok(state)
    }

    /// Moves the mark up to `mark`, but never past an undecided YES (T7), and hands every forgotten register to
    /// `forget`.
    pub fn advance(&mut self, mark: u64, mut forget: impl FnMut(u64, Register, Option<Transfer>)) {
        while self.mark < mark {
            let Some(code) = self.ring.front() else { break };
            let register = Register::from_code(*code);
            if register == Register::Yes {
                return;
            }
            let name = if self.names.is_empty() { None } else { self.names.remove(&self.mark) };
            forget(self.mark, register, name);
            self.ring.pop_front();
            self.mark += 1;
            if !self.beside.is_empty() {
                self.refill();
            }
        }
        while self.mark < mark {
            // The ring is empty: jump, but only over what `beside` does not hold back.
            let next = self.beside.first_key_value().map(|(seq, code)| (*seq, Register::from_code(*code)));
            match next {
                Some((seq, Register::Yes)) if seq < mark => {
                    self.mark = seq;
                    break;
                }
                Some((seq, register)) if seq < mark => {
                    self.beside.pop_first();
                    forget(seq, register, self.names.remove(&seq));
                    self.mark = seq + 1;
                }
                _ => self.mark = mark,
            }
        }
        self.refill();
        // What one burst needed is not kept for as long as the session lives.
        if self.ring.capacity() > 256 && self.ring.len() < self.ring.capacity() / 4 {
            self.ring.shrink_to(self.ring.len() * 2);
        }
    }

    /// Moves registers that have come into the window from beside the ring into it.
    fn refill(&mut self) {
        while let Some((seq, _)) = self.beside.first_key_value() {
            let seq = *seq;
            if !self.in_window(seq) {
                return;
            }
            let code = self.beside.remove(&seq).expect("B3: the key was just read");
            let index = (seq - self.mark) as usize;
            if index >= self.ring.len() {
                self.ring.resize(index + 1, 0);
            }
            self.ring[index] = code;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same as a table without ring and window.
    #[derive(Default)]
    struct Model {
        mark: u64,
        registers: BTreeMap<u64, Register>,
    }

    impl Model {
        fn advance(&mut self, mark: u64) -> Vec<(u64, Register)> {
            let held =
                self.registers.iter().find(|(_, r)| **r == Register::Yes).map_or(mark, |(seq, _)| *seq);
            self.mark = self.mark.max(mark.min(held));
            let kept = self.registers.split_off(&self.mark);
            std::mem::replace(&mut self.registers, kept).into_iter().collect()
        }
    }

    /// What ARCHITECTURE.md says that an idle session costs.
    #[test]
    fn an_idle_session_takes_little_memory() {
        assert!(size_of::<(crate::types::Session, SessionState)>() <= 112);
        let mut state = SessionState::new(SESSION_WINDOW);
        for seq in 1..=SESSION_WINDOW {
            state.set(seq, Register::Committed);
        }
        state.advance(SESSION_WINDOW - 9, |_, _, _| ());
        assert!(state.ring.capacity() <= 256, "{}", state.ring.capacity());
        assert_eq!((state.registers().count(), state.get(SESSION_WINDOW)), (10, Register::Committed));
    }

    /// Where something happens: around the mark, and around the end of the window and of the next ones.
    fn distance() -> impl Strategy<Value = u64> {
        (0u64..3, 0u64..8)
            .prop_map(|(windows, near)| (windows * SESSION_WINDOW + near).saturating_sub(windows.min(1) * 4))
    }

    fn register() -> impl Strategy<Value = Register> {
        prop_oneof![
            Just(Register::No(Reason::NoQuorum)),
            Just(Register::Committed),
            Just(Register::Yes),
            Just(Register::YesCommitted),
            Just(Register::YesAborted),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// B3, T7: a register that was set stays what it is until the mark passes it, wherever it is kept, and the mark
        /// never passes an undecided YES.
        #[test]
        fn registers_are_kept_up_to_the_mark_and_no_longer(
            steps in prop::collection::vec((distance(), prop::option::weighted(0.7, register())), 1..40)
        ) {
            let (mut state, mut model) = (SessionState::new(SESSION_WINDOW), Model { mark: 1, ..Model::default() });
            for (distance, register) in steps {
                let seq = model.mark + distance;
                match register {
                    Some(register) => {
                        let before = model.registers.insert(seq, register).unwrap_or(Register::Empty);
                        prop_assert_eq!(state.set(seq, register), before);
                    }
                    None => {
                        let mut forgotten = Vec::new();
                        state.advance(seq, |seq, register, _| {
                            if register != Register::Empty {
                                forgotten.push((seq, register));
                            }
                        });
                        prop_assert_eq!(forgotten, model.advance(seq));
                    }
                }
                prop_assert_eq!(state.mark(), model.mark);
                for seq in model.registers.keys().copied().chain(model.mark..model.mark + 8) {
                    let register = model.registers.get(&seq).copied().unwrap_or(Register::Empty);
                    prop_assert_eq!(state.get(seq), register, "of {}", seq);
                }
                for distance in [0, SESSION_WINDOW - 1, SESSION_WINDOW, 2 * SESSION_WINDOW] {
                    prop_assert_eq!(state.in_window(model.mark + distance), distance < SESSION_WINDOW);
                }
                // What the window bounds is memory: the ring never outgrows it.
                prop_assert!(state.ring.len() as u64 <= SESSION_WINDOW);
                prop_assert!(state.beside.keys().all(|seq| !state.in_window(*seq)));
            }
        }
    }
}
