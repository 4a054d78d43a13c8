//! ShardPaxosBank.
pub mod bank;
pub mod codec;
pub mod config;
pub mod drive;
pub mod net;
pub mod paxos;
pub mod shard;
pub mod sim;
pub mod storage;
pub mod testset;
pub mod txn;
pub mod types;
pub mod workload;
