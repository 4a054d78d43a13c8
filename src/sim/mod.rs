//! A small deterministic world: the production core, the write-ahead log on a disk that forgets, and the drivers' common
//! turn, in virtual time. One seed, or one script, decides everything.
//!
//! * [`World`] runs servers and coordinators, and lets scripts and chaos do harm to them.
//! * `network` loses, delays, repeats and reorders; `disk` cuts the power between two operations.
//! * [`Checker`] sees everything at once and panics with the number of the rule that broke.
//! * [`chaos::run`] is one random run: harm first, then healing, then everything must come to rest.
//!
//! Deliberately absent: threads, sockets, files and clocks, and any second description of the protocol. What is checked
//! is the code that ships.

mod chaos;
mod checker;
mod clients;
mod disk;
mod network;
mod server;
mod text;
mod world;

pub use chaos::{Summary, run};
pub use checker::Checker;
pub use network::{Place, Weather};
pub use server::Harm;
pub use world::{Options, Trace, World};
