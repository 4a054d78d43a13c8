//! ShardPaxosBank.
pub mod bank;
pub mod codec;
pub mod config;
pub mod paxos;
pub mod txn;
pub mod types;
