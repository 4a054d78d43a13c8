//! What clients may ask for: blocks that are well formed, belong to this shard, and are theirs to propose.

use crate::bank::command::{self, Command};
use crate::bank::validate;
use crate::shard::Shard;
use crate::types::Value;

impl Shard {
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
