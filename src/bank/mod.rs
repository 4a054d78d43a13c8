//! The bank: the deterministic state machine that every server of a shard applies its log to.
//!
//! [`Bank::apply`] is the only way state changes, and it runs when a slot is decided, so all checks of locks, balances
//! and ids happen at the same place in the same order on every server (P4). Two-phase locking lives here as well: a
//! prepared transaction locks its account until its outcome is applied, and nothing ever waits inside the log.
//!
//! Invariants kept here: **B1** no negative balance, **B2** conserved money, **B3** exactly once, **T1** write-once vote
//! registers, **T5** locks are freed by outcomes from the log alone, **T7** (its half in `apply`: no mark passes an
//! undecided YES, no session expires with one, and nothing of an expired session is ever done again).
//!
//! Deliberately absent: clocks, time-outs and messages. Who asks, and what is told to whom, is known to
//! [`crate::shard`] and [`crate::txn`] only.

mod accounts;
mod apply;
pub mod command;
pub mod history;
mod holds;
mod image;
mod session;
mod status;

pub use apply::{Bank, Committed, Effects, validate};
pub use holds::{Hold, Holds};
pub use image::{Image, Incoming, Verifier};
pub use session::named_window;
pub use status::{BlockResult, Status};
