//! What clients may ask for: blocks that are well formed, belong to this shard, and are theirs to propose; and whether
//! what they ask for is taken up.

use crate::bank::command::{self, Command};
use crate::bank::validate;
use crate::paxos::Standing;
use crate::paxos::handover::{LEAVES, TOO_SLOW};
use crate::shard::{Event, Output, Shard};
use crate::types::{Time, Value};

impl Shard {
    /// Requests of clients that wait for their place in a slot, and the bytes of their blocks. Only a leader has any.
    pub fn queue(&self) -> (usize, usize) {
        (self.queue.len(), self.queue_bytes)
    }

    /// Whether a server that is about to stop may do so without leaving its cluster without a leader, as far as it knows.
    pub fn has_left(&self, now: Time) -> bool {
        let alone = self.topology.servers_per_cluster == 1;
        let followed = matches!(self.replica.standing(now), Standing::Following(_));
        self.leaving && (followed || alone && self.queue.is_empty() && self.pending.is_empty())
    }

    /// Begins to leave the lead if this leader is too slow and another server could take it.
    pub(super) fn judge_lateness(&mut self, now: Time, out: &mut Output) {
        if self.lateness.is_too_slow(now, &self.timeouts) && self.replica.successor(now).is_some() {
            self.lateness.leave(now, &self.timeouts);
            out.events.push(Event::TooSlow);
        }
    }

    /// Why this server takes no requests and leaves the lead if it has it: it is about to stop, or too slow.
    pub(super) fn leaves(&self, now: Time) -> Option<&'static str> {
        if self.leaving { Some(LEAVES) } else { self.lateness.leaves(now).then_some(TOO_SLOW) }
    }

    /// Leaves the lead if it is to, and nobody waits for a slot any more. One that is only slow stays if nobody could follow
    /// it: then slow is better than nothing.
    pub(super) fn leave_lead(&mut self, now: Time, out: &mut Output) {
        if let Some(why) = self.leaves(now)
            && self.queue.is_empty()
            && (self.leaving || self.replica.successor(now).is_some())
        {
            self.replica.resign(now, why, &mut out.paxos);
        }
    }

    /// Whether clients are told nothing of its state, since others contradict it (P4).
    pub fn is_silent(&self) -> bool {
        self.comparison.is_silent()
    }

    /// Whether these blocks are well formed and belong to this shard; how much there is.
    pub(super) fn check(&self, blocks: &Value) -> Result<command::Size, String> {
        let size = command::check(&blocks.0)?;
        if size.blocks == 0 {
            return Err("no blocks".into());
        }
        for block in command::blocks(&blocks.0) {
            let block = block?;
            if let Some(session) = block.session().filter(|s| s.shard().0 > self.topology.clusters) {
                return Err(format!("session {session} is of no shard of this bank"));
            }
            let (records, across) = match block {
                Command::Transfers { records, .. } => (records, false),
                Command::Prepare { records, participants, .. } => {
                    if !participants.contains(&self.shard) || participants[1].0 > self.topology.clusters {
                        return Err(format!("a prepare for {participants:?} came to {}", self.shard));
                    }
                    (records, true)
                }
                Command::Rejoin { .. } => return Err("servers are let in by their leader only".into()),
                _ => continue,
            };
            for record in records {
                let transfer = record.get();
                // What aborts anywhere, with the same reason, may as well abort here.
                let Ok((from, to)) = validate(&self.topology, &transfer) else { continue };
                if (from != self.shard && to != self.shard) || (from != to) != across {
                    return Err(format!("{transfer} came to {} as the wrong kind", self.shard));
                }
            }
        }
        Ok(size)
    }
}
