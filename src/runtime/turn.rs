//! What one turn of a server's loop adds to its published status, and how that is put together.

use std::time::Duration;

use parking_lot::Mutex;

use crate::metrics::{Counts, Served};
use crate::paxos::{self, Standing};
use crate::report::Role;
use crate::runtime::clock::uptime;
use crate::runtime::status::{Status, Won};
use crate::shard::{self, Shard};
use crate::storage::{Disk, Wal};
use crate::types::{Slot, Time};

/// What happened in one turn.
#[derive(Default)]
pub struct TurnLog {
    pub messages_in: u64,
    pub messages_out: u64,
    /// Of each slot that this server proposed and that was decided: its transactions, and how long it took.
    pub led: Vec<(u64, Duration)>,
    pub commits: Vec<Duration>,
    pub damage: Vec<String>,
    /// What stops the cluster (S2).
    pub lost: Option<String>,
    pub wal_bytes: u64,
    pub won: Vec<Won>,
    counts: Counts,
}

/// What only the loop knows of its server.
pub struct Around {
    /// At the end of the turn.
    pub uptime: Duration,
    /// Cut off by an order.
    pub failed: bool,
    /// Told to stop.
    pub leaving: bool,
    /// The highest slot up to which a leader said that all is decided.
    pub told: Slot,
    /// Bytes of frames received and sent.
    pub bytes: (u64, u64),
    pub dropped: u64,
    pub served: Served,
}

impl TurnLog {
    pub fn count_paxos(&mut self, event: &paxos::Event) {
        match event {
            paxos::Event::Leading { .. } => self.counts.elections_won += 1,
            paxos::Event::LostLeadership { .. } => self.counts.leadership_losses += 1,
            paxos::Event::Rewritten { .. } => self.counts.values_rewritten += 1,
            _ => {}
        }
    }

    pub fn count_shard(&mut self, event: &shard::Event) {
        match event {
            shard::Event::Applied { committed, aborted } => {
                self.counts.committed += committed;
                aborted.iter().for_each(|why| self.counts.abort(*why));
            }
            shard::Event::SnapshotInstalled { .. } => self.counts.snapshots_installed += 1,
            shard::Event::DigestsDiffer { .. } => self.counts.digest_mismatches += 1,
            _ => {}
        }
    }

    /// Publishes the server as it is at the end of this turn.
    pub fn publish<D: Disk>(
        self,
        now: Time,
        shard: &Shard,
        wal: &Wal<D>,
        around: Around,
        status: &Mutex<Status>,
    ) {
        let (replica, bank) = (shard.replica(), shard.bank());
        let standing = replica.standing(now);
        let role = match standing {
            _ if !replica.membership().votes() => Role::Learner,
            Standing::Leading => Role::Leader,
            Standing::Following(_) => Role::Follower,
            Standing::Searching => Role::Searching,
            Standing::NoQuorum => Role::NoQuorum,
        };
        let leader = match standing {
            Standing::Leading => Some(shard.id()),
            Standing::Following(leader) => Some(leader),
            Standing::Searching | Standing::NoQuorum => None,
        };
        let led_until = replica.led_until(now).map_or(Duration::ZERO, uptime);
        let in_flight = if replica.is_leader() { replica.position().0 - replica.decided().0 } else { 0 };
        let known = around.told.max(replica.known());
        let (queued, queued_bytes) = shard.queue();
        let (log_bytes, syncs) = (wal.segments_bytes(), wal.disk().syncs());

        let mut status = status.lock();
        status.uptime = around.uptime;
        status.role = role;
        status.leader = leader;
        status.led_until = led_until;
        status.failed = around.failed;
        status.leaving = around.leaving;
        status.repairing = replica.lacks_votes();
        status.disputed = shard.is_silent();
        status.ballot = replica.promised();
        status.decided = replica.decided();
        status.applied = bank.applied();
        status.lag = known.0.saturating_sub(bank.applied().0);
        status.digest = bank.digest();
        status.room = replica.room();
        status.log_bytes = log_bytes;
        status.in_doubt = bank.holds().len() as u64;
        status.queued = queued as u64;
        status.queued_bytes = queued_bytes as u64;
        status.in_flight = in_flight;
        status.elections.extend(self.won);
        let metrics = &mut status.metrics;
        metrics.counts.add(&self.counts);
        metrics.messages_in += self.messages_in;
        metrics.messages_out += self.messages_out;
        (metrics.bytes_in, metrics.bytes_out) = around.bytes;
        metrics.dropped_messages = around.dropped;
        metrics.served = around.served;
        metrics.wal_bytes += self.wal_bytes;
        metrics.syncs = syncs;
        self.damage.iter().for_each(|what| metrics.record_damage(what));
        self.commits.into_iter().for_each(|took| metrics.record_sync(took));
        for (transactions, latency) in self.led {
            metrics.record_led(transactions, now.since(Time::default()), latency);
        }
    }
}
