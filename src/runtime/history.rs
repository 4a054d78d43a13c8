//! The committed transactions of one server, in log order, from its disk.
//!
//! The log holds commands, not outcomes; `apply` is deterministic (P4), so running it again over the log from the first
//! slot tells which of them committed. It goes a piece at a time, so that the server keeps its heartbeats.

use crate::bank::{Bank, Effects};
use crate::config::{Topology, limits};
use crate::runtime::order::LogLine;
use crate::storage::{Disk, Wal};
use crate::types::{NodeId, Slot};

/// A replay in progress.
pub struct Replay {
    bank: Bank,
    effects: Effects,
    to: Slot,
    lines: Vec<LogLine>,
}

impl Replay {
    pub fn new(topology: Topology, me: NodeId, to: Slot) -> Replay {
        Replay {
            bank: Bank::new(topology, topology.shard_of_server(me)),
            effects: Effects::with_history(),
            to,
            lines: Vec::new(),
        }
    }

    /// Replays the next piece; the lines once the end is reached.
    pub fn advance<D: Disk>(&mut self, wal: &Wal<D>) -> std::io::Result<Option<Vec<LogLine>>> {
        if self.bank.applied() < self.to {
            for (slot, _, value) in wal.read(self.bank.applied().next(), limits::CATCH_UP_BYTES)? {
                if slot > self.to {
                    break;
                }
                self.bank.apply(slot, &value, &mut self.effects);
                let line =
                    |c: &crate::bank::Committed| LogLine { slot: c.slot, id: c.id, transfer: c.transfer };
                self.lines.extend(self.effects.committed.iter().map(line));
            }
        }
        let done = self.bank.applied() >= self.to;
        Ok(done.then(|| std::mem::take(&mut self.lines)))
    }
}
