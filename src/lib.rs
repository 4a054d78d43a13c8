//! ShardPaxosBank.
pub mod config;
pub mod types;
pub mod workload;
