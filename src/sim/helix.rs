//! Damage to all servers of a cluster that leaves every record whole on some: named after the strands that hold each other's
//! copy (S2).

use crate::sim::coverage::Seen;
use crate::sim::damage::Damage;
use crate::sim::server::Ailment;
use crate::sim::world::World;
use crate::storage::survey;
use crate::types::{NodeId, ShardId, Slot};

/// Records of one log that go bad at once, at most.
const SPOTS: u64 = 3;

impl World {
    /// Every process of a cluster dies, and in each log some values go bad, of each slot on one server only. Then they start
    /// again, and must find everything together. Nothing happens where that could not be, since somebody is not there.
    pub fn helix(&mut self, shard: ShardId) {
        let members: Vec<NodeId> = self.options.topology.servers_of(shard).collect();
        let sound = |id: &NodeId| {
            let server = &self.servers[id];
            server.is_up() && !server.is_gone() && !server.disk.inner.is_bounded()
        };
        if members.len() < 3 || !members.iter().all(sound) {
            return;
        }
        self.note(|| format!("the values of {shard} go bad on all of its servers, of each slot on one"));
        for (strand, id) in (0..).zip(&members) {
            self.stop(*id, false, false);
            self.spoil(*id, strand, members.len() as u64);
        }
        let mut lost = 0;
        for id in &members {
            // What was armed earlier may strike once more while it starts.
            while !self.start(*id) {
                assert!(
                    !self.servers[id].lost,
                    "S2: {id} does not start, and every value is whole somewhere"
                );
            }
            lost += usize::from(self.servers[id].healing);
        }
        self.coverage.see_if(lost >= self.options.topology.majority(), Seen::Helix);
    }

    /// Some records of the slots of this strand go bad: their values, or all of them where nothing is in doubt for that.
    fn spoil(&mut self, id: NodeId, strand: u64, strands: u64) {
        let disk = self.servers[&id].disk.inner.clone();
        let mut spots = Vec::new();
        let (mut decided, mut top) = (Slot::ZERO, Slot::ZERO);
        let found = survey(&disk, |seen| {
            // Votes in front of a lost record may have been overwritten by it, unless their slots are known as decided there.
            let settled = top <= decided;
            decided = seen.decided.unwrap_or_default().max(decided);
            top = seen.slot.max(decided).max(top);
            if matches!(seen.kind, "accept" | "learn")
                && !seen.payload.is_empty()
                && seen.slot.0 % strands == strand
            {
                spots.push((settled.then_some(top), seen.segment, seen.offset as usize, seen.payload.len()));
            }
        });
        if found.is_err() || spots.is_empty() {
            return;
        }
        // What went bad earlier makes the server believe that it stood further than it did.
        let bounded = !self.servers[&id].flipped;
        for _ in 0..1 + self.rng.below(SPOTS) {
            let (top, segment, at, len) = spots[self.rng.below(spots.len() as u64) as usize];
            // As many votes as its bytes may have been are in doubt, from where the server had come to, unless all of these
            // slots are known as decided.
            let votes = (56 + len as u64).div_ceil(56) * 2 * SPOTS;
            let whole = bounded && top.is_some_and(|top| top.0 + votes <= decided.0) && self.rng.one_in(2);
            let at = if whole { at + 8 } else { at + 56 + len / 2 };
            let name = format!("wal-{segment:08}.seg");
            let Some(mut bytes) = disk.contents(&name) else { continue };
            bytes[at] ^= if whole { 0xff } else { 1 << self.rng.below(8) };
            disk.overwrite(&name, bytes);
            self.note(|| format!("{name} of {id} goes bad at offset {at}"));
        }
        let server = self.server(id);
        server.ailment = Some(Ailment::Damaged(Damage::Bit));
        server.flipped = true;
    }
}
