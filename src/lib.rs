//! ShardPaxosBank.
pub mod config;
pub mod testset;
pub mod types;
pub mod workload;
