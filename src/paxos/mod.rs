//! Multi-Paxos within one cluster: the replicated log of one shard.
//!
//! Sources: L. Lamport, "Paxos Made Simple" (2001), §2.2 for the two phases and §3 for running them over a sequence of
//! slots; pre-vote and check-quorum after D. Ongaro, "Consensus: Bridging Theory and Practice" (2014), §9.6 and §6.2;
//! confirming a read with a round of heartbeats after the same, §6.4.
//!
//! A stable leader runs phase 1 once for all open slots; from then on each slot costs one accept round, and many slots
//! are in flight. The part that differs from the textbook is *state synchronisation in prepare*: `Prepare` and `Promise`
//! carry how far each side has decided, a candidate proposes only after it has everything its quorum knows as decided,
//! and an acceptor accepts a slot only after the slot before it *in that ballot*.
//!
//! * **P1 Durable first.** Promises and acceptances leave through [`Output::after`], which the driver releases only when
//!   every record handed out before is on disk; so does a candidate's own `Prepare`. The leader votes for its own
//!   proposals by a message to itself through the same list. A restarted server finds its promise on disk and campaigns
//!   only above it, hence never leads in a ballot of an earlier life.
//! * **P2 One value per slot, ever.** A server's position is counted in its current ballot only, from its decided slot
//!   on. "Decided up to d" lets it apply up to min(d, position). Votes above stay until they are overwritten slot by
//!   slot. A new leader takes, slot by slot, the vote of the highest ballot in its quorum, or a no-op.
//! * **P5 Reads.** [`Replica::begin_round`] starts a heartbeat round for all reads of a turn; when a majority has echoed
//!   it, the ballot was still in force after those reads arrived.
//!
//! A server whose log has no room drops what it cannot write, as if it had been lost; [`room`] says in which order.
//!
//! Deliberately absent: what a value means, clients, disks, clocks and random numbers (the driver hands those in).

mod election;
mod entries;
pub mod handover;
pub mod leader;
pub mod log;
pub mod membership;
pub mod message;
pub mod output;
mod repair;
pub mod replica;
pub mod room;
#[cfg(test)]
mod tests;

pub use membership::{Membership, Names};
pub use message::Message;
pub use output::{Event, Output, Purpose, ReadLog, Standing};
pub use replica::Replica;
pub use room::Room;
