//! When a server takes a snapshot of its own state.
//!
//! Servers cut after the same slots: the first agreed one (P4) behind so many bytes of decided values. So most of them
//! have the same snapshots, and a transfer that one of them began goes on at any other. How many bytes, the configuration
//! says, and how many accounts the shard has: see [`BEFORE_A_CUT`].

use crate::bank::{Bank, Image};
use crate::config::Limits;
use crate::paxos::room::record_bytes;
use crate::types::{Slot, Value};

/// Bytes of decided values for each byte of balances, at least, before they are written again. Otherwise a server with ten
/// million accounts would write more snapshots than log.
const BEFORE_A_CUT: u64 = 4;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Cuts {
    /// Bytes of decided values from one cut to the next, at least; at `u64::MAX` there is none.
    every: u64,
    digest_slots: u64,
    piece_bytes: u32,
    /// Bytes applied since a cut was due.
    bytes: u64,
    /// A cut that no majority has confirmed yet.
    waiting: Option<Image>,
}

impl Cuts {
    /// For a bank that was just opened, or that a snapshot gave back.
    pub fn new(limits: &Limits) -> Cuts {
        let Limits { snapshot_bytes, digest_slots, piece_bytes, .. } = *limits;
        Cuts { every: snapshot_bytes, digest_slots, piece_bytes, bytes: 0, waiting: None }
    }

    /// The bank has applied one more slot, with this value. Cuts if it is time; a cut that still waits is out of date.
    pub fn applied(&mut self, bank: &Bank, value: &Value) {
        if self.every == u64::MAX {
            return;
        }
        self.bytes += record_bytes(value);
        let due = self.every.max(BEFORE_A_CUT * bank.balances_bytes());
        if self.bytes >= due && bank.applied().0.is_multiple_of(self.digest_slots) {
            self.bytes = 0;
            self.waiting = Some(bank.image(self.piece_bytes));
        }
    }

    /// The bank is another one now, that of a snapshot: whoever took it began to count anew there.
    pub fn jumped(&mut self) {
        self.bytes = 0;
        self.waiting = None;
    }

    /// Whether there is one that was not handed out yet.
    pub fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    /// Hands out a cut once a majority has confirmed a digest at or behind it (P4), which stands for the cut as well: what
    /// others are sent, and what the log in front of it is given up for, is a state that a majority had.
    pub fn take_confirmed(&mut self, confirmed: Slot) -> Option<Image> {
        self.waiting.take_if(|image| image.cut().slot <= confirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bank::{Effects, command};
    use crate::config::Topology;
    use crate::types::ShardId;

    /// Bytes of decided values before a shard with so many accounts is cut for the first time, and for the second.
    fn before_cuts(accounts: u64, snapshot_bytes: u64) -> [u64; 2] {
        let topology = Topology { clusters: 1, servers_per_cluster: 3, accounts, initial_balance: 1 };
        let limits = Limits { snapshot_bytes, digest_slots: 1, ..Limits::default() };
        let (mut bank, mut cuts) = (Bank::new(topology, ShardId(1)), Cuts::new(&limits));
        let mut bytes = Vec::new();
        command::put_open(&mut bytes);
        let (value, mut effects) = (Value(bytes.into()), Effects::default());
        [(); 2].map(|()| {
            let mut decided = 0;
            while cuts.take_confirmed(bank.applied()).is_none() {
                bank.apply(bank.applied().next(), &value, &mut effects);
                cuts.applied(&bank, &value);
                decided += record_bytes(&value);
            }
            decided
        })
    }

    #[test]
    fn balances_are_not_written_more_often_than_transfers() {
        for (accounts, snapshot_bytes, due) in
            [(10, 5_000, 5_000), (1_000, 5_000, 32_000), (1_000, 40_000, 40_000)]
        {
            for decided in before_cuts(accounts, snapshot_bytes) {
                assert!((due..due + 500).contains(&decided), "{decided} bytes with {accounts} accounts");
            }
        }
    }
}
