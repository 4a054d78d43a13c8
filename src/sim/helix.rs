//! Damage to all servers of a cluster that leaves every record whole on some: named after the strands that hold each other's
//! copy (S2).

use crate::sim::coverage::Seen;
use crate::sim::server::Ailment;
use crate::sim::world::World;
use crate::storage::survey;
use crate::types::{NodeId, ShardId};

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

    /// A bit flips in some values of the slots of this strand.
    fn spoil(&mut self, id: NodeId, strand: u64, strands: u64) {
        let disk = self.servers[&id].disk.inner.clone();
        let mut spots = Vec::new();
        let found = survey(&disk, |seen| {
            if matches!(seen.kind, "accept" | "learn")
                && !seen.payload.is_empty()
                && seen.slot.0 % strands == strand
            {
                spots.push((seen.segment, seen.offset as usize + 56 + seen.payload.len() / 2));
            }
        });
        if found.is_err() || spots.is_empty() {
            return;
        }
        for _ in 0..1 + self.rng.below(SPOTS) {
            let (segment, at) = spots[self.rng.below(spots.len() as u64) as usize];
            let name = format!("wal-{segment:08}.seg");
            let Some(mut bytes) = disk.contents(&name) else { continue };
            bytes[at] ^= 1 << self.rng.below(8);
            disk.overwrite(&name, bytes);
            self.note(|| format!("a bit of {name} of {id} flips at offset {at}"));
        }
        let server = self.server(id);
        server.ailment = Some(Ailment::Damaged);
        server.flipped = true;
    }
}
