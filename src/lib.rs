//! ShardPaxosBank: a bank whose accounts are cut into shards. Every shard is replicated by Multi-Paxos on a cluster of
//! servers of its own, and a transfer across two shards is a two-phase commit between their logs. `README.md` says how
//! to run it, `ARCHITECTURE.md` how and why it works.
//!
//! # Map
//!
//! * [`types`]: newtypes for everything that has a number, [`config`]: topology, time-outs, limits, [`codec`]: bytes ↔
//!   messages, the only place that names bincode.
//! * The protocol: [`paxos`] agrees on one cluster's log, [`bank`] is the state machine that the log drives, [`txn`]
//!   commits across shards and recovers, [`shard`] wires the three into one server.
//! * [`storage`]: the write-ahead log behind a `Disk` trait; [`drive`]: one turn of a server, persist before release.
//! * [`net`]: frames and bounded connections; [`resp`]: what Redis clients send and get, as bytes; [`runtime`]: threads,
//!   event loops, clocks, and the commands of the executable.
//! * [`client`]: the library for programs that use a bank.
//! * [`sim`]: the same core and the same log in a deterministic world, with crashes, partitions and a checker.
//! * [`audit`]: which transactions committed, read back from a log. [`backup`]: a copy of the whole bank, from its disks.
//! * [`history`]: whether what clients saw can be explained by a bank that does one thing at a time.
//! * [`testset`] and [`workload`]: set files, the sequential model they are checked against, and random ones.
//!   [`metrics`] and [`report`]: what is counted, and how it is shown.
//!
//! # Import rule
//!
//! Imports run downhill. `types`, `config`, `codec`, `paxos`, `bank`, `txn`, `shard`, `history` and `resp` are pure: they
//! name no clock, socket, file, thread, random number, logger or hash map, so that whoever drives them can repeat every
//! run. What each module may use stands in one table in `tests/tidy.rs`, which reads the sources and enforces it.
//!
//! # Invariants
//!
//! Money is lost when one of these breaks. Assert messages carry the numbers; `ARCHITECTURE.md` has the schedule that
//! goes wrong without each.
//!
//! * **P1** Promises and acceptances are durable before they are answered, the leader's own vote included.
//! * **P2** A slot has one value, ever: positions and acknowledgements count within one ballot.
//! * **P3** A server answers for a slot only from records that it can vouch for.
//! * **P4** The same prefix of the log gives the same state, and a server whose state differs from the others' stops.
//! * **P5** A read is confirmed by a heartbeat round that began after it arrived.
//! * **B1** A balance is never negative.
//! * **B2** Money is conserved: all balances, with the deltas of commits that are not applied yet, keep their sum.
//! * **B3** A transaction takes effect at most once, and a repetition is answered from its record.
//! * **T1** A vote register is written once, by the first decided entry that mentions the transaction.
//! * **T2** A transaction is committed if and only if every participant's register is YES; there is no other record.
//! * **T3** The client is answered when every vote is decided; outcomes travel ahead of the next request.
//! * **T4** Anyone may finish a transaction, through a fence in every participant's log.
//! * **T5** Locks are freed only by outcomes from the log; time-outs only start recovery.
//! * **T6** A read never returns the state before an undecided YES.
//! * **T7** A register is forgotten only when every participant has applied the outcome.
//! * **T8** An abort is definite; what is not known is *unknown*, and is fenced, never executed.
//! * **S1** Only the group of records that a crash interrupted is cut from the log's end.
//! * **S2** Everything else that does not fit is damage: it is named, and its server vouches for no vote that it may have
//!   forgotten.
//! * **S3** Formatting is an explicit act, once in the life of a directory. A server with a new disk votes when a majority
//!   without it has let it in again, and what its old disk vouched for no longer counts.

pub mod audit;
pub mod backup;
pub mod bank;
pub mod bench;
pub mod client;
pub mod codec;
pub mod config;
pub mod drive;
pub mod history;
pub mod metrics;
pub mod net;
pub mod paxos;
pub mod report;
pub mod resp;
pub mod runtime;
pub mod shard;
pub mod sim;
pub mod soak;
pub mod storage;
pub mod testset;
pub mod txn;
pub mod types;
pub mod workload;
