//! ShardPaxosBank.
pub mod config;
pub mod storage;
pub mod types;
