//! Clients that name their transfers: they ask again for what they asked for, through any coordinator, and ask what became
//! of it. Now and then one gives the id of a transfer to another one.

use crate::sim::chaos::Run;
use crate::txn::Op;
use crate::types::{AccountId, Session, ShardId, Transfer, TxnId};

/// So many of the latest are asked for again.
const RECENT: u64 = 6;

impl Run {
    pub(super) fn ask_by_name(&mut self, client: u32) {
        let sessions = self.world.opened.len() as u64;
        if sessions == 0 || self.world.rng.one_in(30) {
            self.world.submit(client, Op::Open);
            return;
        }
        let known = self.named.len() as u64;
        let recent = known.saturating_sub(1 + self.below(RECENT));
        let op = match (self.below(100), known) {
            (0..40, 1..) => {
                let (id, transfer) = self.named[recent as usize];
                Op::Named { id, transfer }
            }
            (40..48, 1..) => {
                let (id, _) = self.named[recent as usize];
                Op::Named { id, transfer: self.some_transfer() }
            }
            (48..60, 1..) => Op::Lookup(self.named[recent as usize].0),
            _ => {
                let id = self.new_name();
                Op::Named { id, transfer: self.some_transfer() }
            }
        };
        if let Op::Named { id, transfer } = op
            && !self.named.contains(&(id, transfer))
        {
            self.named.push((id, transfer));
        }
        self.world.submit(client, op);
    }

    /// Of a session that was opened lately; of a coordinator's, or of none.
    fn new_name(&mut self) -> TxnId {
        if self.world.rng.one_in(15) {
            let shard = ShardId(1 + self.below(u64::from(self.world.options.topology.clusters)) as u16);
            let number = if self.world.rng.one_in(3) { 1 << 40 } else { 1 + self.below(4) };
            return TxnId { session: Session::new(shard, number), seq: 1 + self.below(RECENT) };
        }
        let opened = &self.world.opened;
        let back = self.world.rng.below(opened.len().min(3) as u64) as usize;
        let session = opened[opened.len() - 1 - back];
        let used = self.named.iter().filter(|(id, _)| id.session == session).map(|(id, _)| id.seq);
        TxnId { session, seq: used.max().unwrap_or(0) + 1 }
    }

    fn some_transfer(&mut self) -> Transfer {
        let accounts = self.world.options.topology.accounts;
        let from = 1 + self.below(accounts);
        let to = 1 + (from + self.below(accounts - 1)) % accounts;
        Transfer {
            from: AccountId(from),
            to: AccountId(to),
            amount: (self.plan.unit * (1 + self.below(12))) as i64,
        }
    }
}
