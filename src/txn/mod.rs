//! Two-phase commit across shards, without a record of its own that could be lost.
//!
//! Source: J. Gray and L. Lamport, "Consensus on Transaction Commit" (2006): each participant's vote is itself decided
//! by Paxos, so that nobody's death blocks the others. Here the vote is a write-once register in the participant's log:
//!
//! * **T1, T2** the registers are the decision: committed iff every participant's is YES.
//! * **T3** the client is answered as soon as every YES is decided; outcomes travel ahead of the next request.
//! * **T4** whoever wants to know puts a *fence* through every participant's log, which turns empty registers to NO.
//! * **T7** a shard forgets a transaction only when the client's mark for that shard passes it, and the mark passes it
//!   only when every participant has confirmed its outcome; or when the session expires, after every shard has closed
//!   it and holds nothing of it in doubt.
//! * **T8** *no quorum* is an abort, hence definite: it is reported only for what was never proposed anywhere, or has a
//!   decided NO. What is not known is *unknown*, and fences find out later; nothing is executed then.
//!
//! [`Coordinator`] is pure: it runs in the coordinator thread, in the simulator, and inside every server, where it
//! finishes what a dead client left in doubt. Deliberately absent: sockets, clocks, and any notion of which servers an
//! operator believes to be up; it learns that from the servers alone.

mod batch;
mod coordinator;
mod decide;
mod group;
mod link;
pub mod message;
mod named;
mod port;
mod retire;
mod send;

pub use coordinator::Coordinator;
pub use link::Reach;
pub use port::{Answer, Event, Found, Input, Op, Outcome, Output};

#[cfg(test)]
mod tests;
