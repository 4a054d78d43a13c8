//! A leader whose cluster has no space for new work: what waits in its queue is refused before it is proposed.

use crate::bank::command::{self, Command};
use crate::paxos::room::record_bytes;
use crate::shard::{Input, Output, Shard};
use crate::txn::message::{Refusal, Request, Response};
use crate::types::{Time, Value};

impl Input {
    /// The most that this may make a server write.
    pub fn demand(&self) -> u64 {
        let all = |values: &mut dyn Iterator<Item = &Value>| values.map(record_bytes).sum();
        match self {
            Input::Peer { message, .. } => all(&mut message.values()),
            Input::Request { request: Request::Submit { blocks, .. }, .. } => record_bytes(blocks),
            _ => 0,
        }
    }
}

/// Whether a request asks for something to be begun. Whatever else it may ask for frees locks, or makes room.
pub(super) fn is_new_work(blocks: &Value) -> bool {
    command::blocks(&blocks.0)
        .any(|block| matches!(block, Ok(Command::Transfers { .. } | Command::Prepare { .. })))
}

impl Shard {
    /// The most that this server may want to write in a turn, beside what the turn's inputs ask for. Promises, notes and
    /// its own recoveries are small, and covered by the reserve.
    pub fn demand(&self) -> u64 {
        let queued: u64 = self.queue.iter().map(|q| record_bytes(&q.blocks)).sum();
        let own = self.recoverer.retiring_bytes() + self.history.demand() + self.replica.demand();
        self.limits.reserve_bytes + queued + own
    }

    /// T8: refused here means never proposed, so a client may be told for good that nothing comes of it.
    pub(super) fn refuse_for_space(&mut self, now: Time, out: &mut Output) {
        let Some(room) = self.replica.room_to_propose(now, &out.paxos) else { return };
        let mut spent = 0;
        let mut refused = Vec::new();
        for queued in std::mem::take(&mut self.queue) {
            let cost = record_bytes(&queued.blocks);
            // The last request that finds room may take some of the reserve.
            let may = !is_new_work(&queued.blocks) || spent < room.new_work;
            if may && spent + cost <= room.rest {
                spent += cost;
                self.queue.push_back(queued);
                continue;
            }
            // Soon somebody else will lead, who has room.
            let busy = room.hands_over && spent >= room.new_work;
            let why = if busy { Refusal::Busy } else { Refusal::StorageFull };
            self.queue_bytes -= queued.blocks.len();
            refused.push((queued.client, Response::Refused { request: queued.request, why }));
        }
        for (client, response) in refused {
            self.reply(now, client, response, out);
        }
    }
}
