//! A small deterministic world: the production core, the write-ahead log on a disk that forgets, and the drivers' common
//! turn, in virtual time. One seed, or one script, decides everything.
//!
//! * [`World`] runs servers and coordinators, and lets scripts and chaos do harm to them: `power` to servers, `network` to
//!   what travels, `partition` to who reaches whom, `disk` cuts the power between two operations, `clock` tells the time
//!   wrongly, `plot` combines them with an aim.
//! * [`Checker`] sees everything at once and panics with the number of the rule that broke. `promises` holds P1 against
//!   servers that restart, `acceptances` holds P2 against servers that lead and decide. At the end [`crate::history`] judges what the clients saw, and nothing else.
//! * [`Plan`] is what a seed draws; [`run`] is one random run: harm first, then healing, then everything must come to rest.
//!   [`attempt`] catches what goes wrong. [`Coverage`] tells what runs have met.
//!
//! Deliberately absent: threads, sockets, files and clocks, and any second description of the protocol. What is checked
//! is the code that ships.

mod acceptances;
mod attempt;
mod chaos;
mod checker;
mod clients;
mod clock;
mod coverage;
mod damage;
mod disk;
mod faults;
mod helix;
mod listing;
mod naming;
mod network;
mod partition;
mod plan;
mod plot;
mod power;
mod promises;
mod server;
mod sessions;
mod sights;
mod text;
mod trace;
mod verdict;
mod world;

pub use attempt::{Violation, attempt};
pub use chaos::{Summary, run};
pub use checker::Checker;
pub use coverage::{Coverage, Seen};
pub use network::{Packet, Place, Weather};
pub use plan::Plan;
pub use server::{Harm, Outbox, Sent};
pub use trace::Trace;
pub use world::{Options, World};
