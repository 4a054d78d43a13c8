//! ShardPaxosBank.
pub mod config;
pub mod net;
pub mod types;
