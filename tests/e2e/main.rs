//! The bank as its users see it: real processes, threads, sockets, disks and signals, and nothing simulated.
//!
//! Every test waits for conditions with generous limits and none for a time to pass, because machines may be slow.

mod backup;
mod bad_input;
mod bench;
mod catch_up;
mod common;
mod continued;
mod crowd;
mod examples;
mod failing_disk;
mod full;
mod harm;
mod hostile;
mod ids;
mod inspect;
mod leaving;
mod library;
mod local;
mod process;
mod resp;
mod restart;
mod run;
mod syncs;
mod torture;
mod twins;
