//! ShardPaxosBank.
pub mod bank;
pub mod codec;
pub mod config;
pub mod drive;
pub mod metrics;
pub mod net;
pub mod paxos;
pub mod report;
pub mod runtime;
pub mod shard;
pub mod sim;
pub mod storage;
pub mod testset;
pub mod txn;
pub mod types;
pub mod workload;
