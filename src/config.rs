//! What is fixed for the life of a bank: topology, shard map, time-outs and limits.
//!
//! Pure data and arithmetic. Reading `cluster.toml` belongs to [`crate::runtime`], which validates through here.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{AccountId, NodeId, ShardId};

/// How many clusters, servers and accounts there are. Two servers work together only if theirs are equal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Topology {
    /// Number of clusters, which is the number of shards; 1 to 1,000.
    pub clusters: u16,
    /// Servers in each cluster; odd, 1 to 9.
    pub servers_per_cluster: u16,
    /// Accounts 1…N, divided by range; at least one per shard.
    pub accounts: u64,
    /// Units with which every account is opened.
    pub initial_balance: u64,
}

impl Default for Topology {
    fn default() -> Self {
        Topology { clusters: 3, servers_per_cluster: 3, accounts: 3000, initial_balance: 10 }
    }
}

impl Topology {
    /// The most accounts a bank may have: their balances are dense arrays in memory.
    pub const MAX_ACCOUNTS: u64 = 1 << 32;

    /// Says what is wrong with this topology and what is accepted, naming the flag.
    pub fn validate(&self) -> Result<(), String> {
        if !(1..=1000).contains(&self.clusters) {
            return Err(format!("--clusters {}: must be 1 to 1000", self.clusters));
        }
        if !(1..=9).contains(&self.servers_per_cluster) || self.servers_per_cluster.is_multiple_of(2) {
            return Err(format!(
                "--servers {}: must be odd, 1 to 9 (servers per cluster)",
                self.servers_per_cluster
            ));
        }
        if self.accounts < u64::from(self.clusters) || self.accounts > Self::MAX_ACCOUNTS {
            return Err(format!(
                "--accounts {}: must be {} (one per cluster) to {}",
                self.accounts,
                self.clusters,
                Self::MAX_ACCOUNTS
            ));
        }
        match self.accounts.checked_mul(self.initial_balance) {
            Some(total) if total <= i64::MAX as u64 => Ok(()),
            _ => Err(format!(
                "--balance {}: times {} accounts must stay below 2^63",
                self.initial_balance, self.accounts
            )),
        }
    }

    pub fn shards(&self) -> impl DoubleEndedIterator<Item = ShardId> + use<> {
        (1..=self.clusters).map(ShardId)
    }

    pub fn servers(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (1..=self.clusters * self.servers_per_cluster).map(NodeId)
    }

    pub fn server_count(&self) -> usize {
        usize::from(self.clusters) * usize::from(self.servers_per_cluster)
    }

    pub fn contains_server(&self, server: NodeId) -> bool {
        server.0 >= 1 && usize::from(server.0) <= self.server_count()
    }

    /// The servers of one cluster, in ascending order.
    pub fn servers_of(&self, shard: ShardId) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        let first = (shard.0 - 1) * self.servers_per_cluster + 1;
        (first..first + self.servers_per_cluster).map(NodeId)
    }

    /// The shard that a server replicates.
    pub fn shard_of_server(&self, server: NodeId) -> ShardId {
        assert!(self.contains_server(server), "{server} is not in this topology");
        ShardId((server.0 - 1) / self.servers_per_cluster + 1)
    }

    /// The shard that holds an account, or `None` for one outside 1…N.
    pub fn shard_of(&self, account: AccountId) -> Option<ShardId> {
        let index = account.0.checked_sub(1).filter(|i| *i < self.accounts)?;
        if self.clusters == 1 {
            return Some(ShardId(1));
        }
        let (small, larger) = self.shard_sizes();
        let in_larger = larger * (small + 1);
        let shard =
            if index < in_larger { index / (small + 1) } else { larger + (index - in_larger) / small };
        Some(ShardId(shard as u16 + 1))
    }

    /// The shards of two accounts, `None` if one of them is outside 1…N.
    #[inline]
    pub fn shards_of(&self, first: AccountId, second: AccountId) -> Option<(ShardId, ShardId)> {
        let shard = self.shard_of(first)?;
        // Mostly it is the same: divisions are what costs time here.
        let same = self.accounts_of(shard).contains(&second.0);
        Some((shard, if same { shard } else { self.shard_of(second)? }))
    }

    /// The accounts of a shard. Where the division leaves a rest, the first shards hold one more.
    pub fn accounts_of(&self, shard: ShardId) -> RangeInclusive<u64> {
        let (small, larger) = self.shard_sizes();
        let before = u64::from(shard.0 - 1);
        let first = before * small + before.min(larger) + 1;
        let size = small + u64::from(before < larger);
        first..=first + size - 1
    }

    /// Servers that must agree: more than half of a cluster.
    pub fn majority(&self) -> usize {
        usize::from(self.servers_per_cluster) / 2 + 1
    }

    /// (size of the smaller shards, how many shards hold one account more)
    fn shard_sizes(&self) -> (u64, u64) {
        if self.clusters == 1 {
            return (self.accounts, 0);
        }
        let clusters = u64::from(self.clusters);
        (self.accounts / clusters, self.accounts % clusters)
    }
}

/// Time-outs of the protocol. They decide how fast failures are noticed, never whether money is safe.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Timeouts {
    /// How often an idle leader shows that it is alive.
    pub heartbeat_interval_ms: u64,
    /// Silence after which a leader counts as lost; each server adds a random share of the same length again.
    pub election_timeout_ms: u64,
    /// How long a cross-shard transaction may stay in doubt before its participants finish it (T4).
    pub in_doubt_timeout_ms: u64,
    /// How long a read waits for an undecided lock or a confirmed leader (T6).
    pub read_timeout_ms: u64,
    /// Silence after which a client counts a server as unreachable.
    pub unreachable_timeout_ms: u64,
    /// How long a session may stay unused before the shard that issued it lets it expire (T7); 0 stands for ever.
    pub session_idle_timeout_ms: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            heartbeat_interval_ms: 50,
            election_timeout_ms: 300,
            in_doubt_timeout_ms: 1000,
            read_timeout_ms: 5000,
            unreachable_timeout_ms: 1500,
            session_idle_timeout_ms: 600_000,
        }
    }
}

impl Timeouts {
    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_interval_ms)
    }

    pub fn election(&self) -> Duration {
        Duration::from_millis(self.election_timeout_ms)
    }

    pub fn in_doubt(&self) -> Duration {
        Duration::from_millis(self.in_doubt_timeout_ms)
    }

    pub fn read(&self) -> Duration {
        Duration::from_millis(self.read_timeout_ms)
    }

    pub fn unreachable(&self) -> Duration {
        Duration::from_millis(self.unreachable_timeout_ms)
    }

    /// `None` if sessions never expire.
    pub fn session_idle(&self) -> Option<Duration> {
        (self.session_idle_timeout_ms > 0).then(|| Duration::from_millis(self.session_idle_timeout_ms))
    }

    /// The first that differs from another's: its name, its value, and the other's.
    pub fn difference(&self, other: &Timeouts) -> Option<(&'static str, u64, u64)> {
        [
            ("heartbeat_interval_ms", self.heartbeat_interval_ms, other.heartbeat_interval_ms),
            ("election_timeout_ms", self.election_timeout_ms, other.election_timeout_ms),
            ("in_doubt_timeout_ms", self.in_doubt_timeout_ms, other.in_doubt_timeout_ms),
            ("read_timeout_ms", self.read_timeout_ms, other.read_timeout_ms),
            ("unreachable_timeout_ms", self.unreachable_timeout_ms, other.unreachable_timeout_ms),
            ("session_idle_timeout_ms", self.session_idle_timeout_ms, other.session_idle_timeout_ms),
        ]
        .into_iter()
        .find(|(_, ours, theirs)| ours != theirs)
    }

    pub fn validate(&self) -> Result<(), String> {
        if self.heartbeat_interval_ms == 0 || self.election_timeout_ms < 3 * self.heartbeat_interval_ms {
            return Err(format!(
                "election_timeout_ms {}: must be at least three heartbeat intervals ({} ms each, at least 1)",
                self.election_timeout_ms, self.heartbeat_interval_ms
            ));
        }
        let idle = self.session_idle_timeout_ms;
        if idle != 0 && !(1000..=86_400_000_000).contains(&idle) {
            return Err(format!(
                "session_idle_timeout_ms {idle}: must be 1000 to 86400000000, or 0 (sessions never expire)"
            ));
        }
        for (name, ms) in [
            ("in_doubt_timeout_ms", self.in_doubt_timeout_ms),
            ("read_timeout_ms", self.read_timeout_ms),
            ("unreachable_timeout_ms", self.unreachable_timeout_ms),
        ] {
            if ms == 0 || ms > 3_600_000 {
                return Err(format!("{name} {ms}: must be 1 to 3600000"));
            }
        }
        Ok(())
    }
}

/// How much of its past a server keeps on its disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Keep {
    /// Decided values from one snapshot to the next, 1 to 1,000,000; a shard whose balances take more than a quarter of that
    /// waits for four times what they take. A restart applies that much again, and twice as much log is kept. All servers of a
    /// bank should have the same, so that they can help each other out with snapshots.
    pub snapshot_mib: u32,
    /// Log that no restart needs: the audit log, 0 to 1,000,000,000.
    pub audit_mib: u32,
    /// How old such log may become, 1 to 36,500 days; 0: any age.
    pub audit_days: u32,
}

impl Default for Keep {
    fn default() -> Keep {
        Keep { snapshot_mib: 64, audit_mib: 1024, audit_days: 0 }
    }
}

impl Keep {
    pub fn validate(&self) -> Result<(), String> {
        for (name, number, range) in [
            ("snapshot_mib", self.snapshot_mib, 1..=1_000_000),
            ("audit_mib", self.audit_mib, 0..=1_000_000_000),
            ("audit_days", self.audit_days, 0..=36_500),
        ] {
            if !range.contains(&number) {
                return Err(format!("{name} {number}: must be {} to {}", range.start(), range.end()));
            }
        }
        Ok(())
    }

    pub fn snapshot_bytes(&self) -> u64 {
        u64::from(self.snapshot_mib) << 20
    }

    pub fn audit_bytes(&self) -> u64 {
        u64::from(self.audit_mib) << 20
    }

    pub fn audit_age(&self) -> Option<Duration> {
        (self.audit_days > 0).then(|| Duration::from_secs(u64::from(self.audit_days) * 86_400))
    }
}

/// What may be chosen for a bank besides its topology, and changed when its servers start again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Settings {
    pub timeouts: Timeouts,
    pub keep: Keep,
    /// Connections of clients and operators that one server has at most, 16 to 1,000,000.
    pub connections: u32,
    /// Whether each server's thread keeps to one core, see [`cores`](crate::runtime::cores).
    pub pinned: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        let (timeouts, keep) = (Timeouts::default(), Keep::default());
        Settings { timeouts, keep, connections: limits::CONNECTIONS, pinned: false }
    }
}

impl From<Timeouts> for Settings {
    fn from(timeouts: Timeouts) -> Settings {
        Settings { timeouts, ..Settings::default() }
    }
}

/// Bounds that change how work is cut into pieces and nothing else. Servers run with the default; the simulator also with
/// bounds so small that every piece of work meets them. All servers and clients of a bank need the same ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Limits {
    /// Slots that a leader keeps in flight above its decided one; at most [`limits::WINDOW_SLOTS`].
    pub window_slots: u64,
    /// Bytes of requests that a leader puts into one slot; a larger request is a slot of its own.
    pub batch_bytes: usize,
    /// Bytes of decided entries kept in memory.
    pub tail_bytes: usize,
    /// Bytes of entries in one message, unless a single entry is larger.
    pub catch_up_bytes: usize,
    /// Bytes of requests that wait for a leader's next batch.
    pub queue_bytes: usize,
    /// Linearizable reads that wait at one leader; together with probes twice as many.
    pub waiting_reads: usize,
    /// Transactions of others that one server recovers at the same time.
    pub recoveries: usize,
    /// Sequences above its mark that a session may use on one shard.
    pub session_window: u64,
    /// Sessions that one shard issues and has not let expire.
    pub sessions: usize,
    /// Transactions in one block.
    pub group_max: usize,
    /// Bytes of blocks in one frame of a coordinator, unless a single block is larger.
    pub frame_bytes: usize,
    /// Bytes of a piece of a snapshot; a multiple of 8.
    pub piece_bytes: u32,
    /// Servers compare the digests of their states after every slot that this divides (P4), and take snapshots there.
    pub digest_slots: u64,
    /// Bytes of decided values from one snapshot to the next, at least; at `u64::MAX` none is taken.
    pub snapshot_bytes: u64,
    /// Bytes of a log without space that new work may not have: see [`limits::RESERVE_BYTES`].
    pub reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            window_slots: limits::WINDOW_SLOTS,
            batch_bytes: limits::VALUE_BYTES,
            tail_bytes: limits::TAIL_BYTES,
            catch_up_bytes: limits::CATCH_UP_BYTES,
            queue_bytes: limits::QUEUE_BYTES,
            waiting_reads: limits::WAITING_READS,
            recoveries: limits::RECOVERIES,
            session_window: limits::SESSION_WINDOW,
            sessions: limits::SESSIONS,
            group_max: limits::GROUP_MAX,
            frame_bytes: limits::VALUE_BYTES,
            piece_bytes: limits::PIECE_BYTES,
            digest_slots: limits::DIGEST_SLOTS,
            snapshot_bytes: Keep::default().snapshot_bytes(),
            reserve_bytes: limits::RESERVE_BYTES,
        }
    }
}

/// Bounds on what one server buffers. Everything that grows has one.
pub mod limits {
    /// Largest value of a slot, in bytes: 8,190 transfers of 24 bytes and their headers fit.
    pub const VALUE_BYTES: usize = 256 * 1024;
    /// Slots a leader keeps in flight above its decided one; also bounds the votes in a promise.
    pub const WINDOW_SLOTS: u64 = 64;
    /// Largest frame between servers: a promise with the votes of two whole windows (a server may restart one window
    /// behind what was decided), and room for headers.
    pub const PEER_FRAME_BYTES: usize = (2 * WINDOW_SLOTS as usize + 2) * (VALUE_BYTES + 256);
    /// Largest frame from a client: it must fit one slot.
    pub const CLIENT_FRAME_BYTES: usize = VALUE_BYTES + 4096;
    /// Bytes of client requests that wait for the leader's next batch; more is answered *busy*.
    pub const QUEUE_BYTES: usize = 8 * 1024 * 1024;
    /// Linearizable reads that wait at one leader, twice as many together with probes; more are answered *busy*.
    pub const WAITING_READS: usize = 16_384;
    /// Transactions of others that one server recovers at the same time.
    pub const RECOVERIES: usize = 256;
    /// Bytes of decided entries kept in memory for servers that lag a little; older ones are read from disk.
    pub const TAIL_BYTES: usize = 2 * 1024 * 1024;
    /// Bytes of entries in one catch-up message.
    pub const CATCH_UP_BYTES: usize = 512 * 1024;
    /// Sequence numbers above its mark that a session may use on one shard.
    pub const SESSION_WINDOW: u64 = 1 << 16;
    /// Sessions of one shard that have not expired, each known to every shard; an open beyond them is answered *busy*.
    pub const SESSIONS: usize = 1024;
    /// The most transactions in one block; with 24 bytes each, a slot has room for outcomes ahead of them.
    pub const GROUP_MAX: usize = 8190;
    /// Bytes waiting to be written to one peer before messages to it are dropped.
    pub const PEER_BUFFER_BYTES: usize = PEER_FRAME_BYTES;
    /// Bytes waiting to be written to one client before it is no longer read.
    pub const CLIENT_BUFFER_BYTES: usize = 4 * 1024 * 1024;
    /// Connections of clients and operators at one server, unless configured otherwise.
    pub const CONNECTIONS: u32 = 4096;
    /// The fewest that may be configured.
    pub const CONNECTIONS_LEAST: u32 = 16;
    /// The most that may be configured.
    pub const CONNECTIONS_MOST: u32 = 1_000_000;
    /// Slots from one comparison of digests to the next: as many as a leader has in flight, so that they cost next to
    /// nothing under load.
    pub const DIGEST_SLOTS: u64 = 64;
    /// Where the disk is full, this much of the log is kept for what frees locks: fences, outcomes, and what is in flight
    /// when the reserve begins. A quarter of it is for promises alone.
    pub const RESERVE_BYTES: u64 = 1024 * 1024;
    /// What a record takes in the log beyond its value, at most.
    pub const RECORD_BYTES: u64 = 64;
    /// Size of a WAL segment file.
    pub const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;
    /// Bytes of a piece of a snapshot.
    pub const PIECE_BYTES: u32 = 256 * 1024;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_every_account_once_and_first_shards_take_the_rest() {
        for (clusters, accounts) in [(3, 3000), (3, 3001), (3, 3002), (4, 7), (1, 5), (5, 5)] {
            let t = Topology { clusters, accounts, ..Topology::default() };
            let mut next = 1;
            for shard in t.shards() {
                let range = t.accounts_of(shard);
                assert_eq!(*range.start(), next);
                for a in range.clone() {
                    assert_eq!(t.shard_of(AccountId(a)), Some(shard));
                }
                next = range.end() + 1;
            }
            assert_eq!(next, accounts + 1);
            assert_eq!(t.shard_of(AccountId(0)), None);
            assert_eq!(t.shard_of(AccountId(next)), None);
            let accounts = || (0..next + 1).map(AccountId).step_by(accounts as usize / 5);
            for (first, second) in accounts().flat_map(|first| accounts().map(move |second| (first, second)))
            {
                assert_eq!(t.shards_of(first, second), t.shard_of(first).zip(t.shard_of(second)));
            }
        }
        let t = Topology { accounts: 3001, ..Topology::default() };
        assert_eq!(t.accounts_of(ShardId(1)), 1..=1001);
        assert_eq!(t.accounts_of(ShardId(2)), 1002..=2001);
    }

    #[test]
    fn impossible_topologies_name_the_flag() {
        let even = Topology { servers_per_cluster: 2, ..Topology::default() };
        assert!(even.validate().unwrap_err().starts_with("--servers 2"));
        let rich = Topology { initial_balance: u64::MAX, ..Topology::default() };
        assert!(rich.validate().unwrap_err().starts_with("--balance"));
        let few = Topology { accounts: 2, ..Topology::default() };
        assert!(few.validate().unwrap_err().starts_with("--accounts 2"));
    }
}
