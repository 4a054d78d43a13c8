//! What disks do to files: bits that flip, sectors that are lost, files that are cut or gone, writes that never came or went
//! to another place (S2, S3).

use std::collections::BTreeMap;

use crate::sim::coverage::Seen;
use crate::sim::server::Ailment;
use crate::sim::world::World;
use crate::storage::{Disk, MemDisk, survey};
use crate::types::NodeId;
use crate::workload::SplitMix64;

/// How a file is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    Bit,
    /// Some bytes are others.
    Noise,
    /// A sector cannot be read.
    Sector,
    Cut,
    Gone,
    /// A group of records was never written, and the disk said that it was.
    LostWrite,
    /// The same, of the last group, in which votes were written over.
    LostOverwrite,
    /// It was written to another place.
    Misdirected,
}

/// What happens to files that servers write to in place, to the log, and to any file of a server that does not run.
const RUNNING: &[Damage] = &[Damage::Bit, Damage::Noise, Damage::Sector];
const LOG: &[Damage] = &[
    Damage::Bit,
    Damage::Noise,
    Damage::Sector,
    Damage::Cut,
    Damage::Gone,
    Damage::LostWrite,
    Damage::Misdirected,
];
/// What is told from a torn write even if the power went, and the mark may be older than the log (S1).
const AFTER_POWER: &[Damage] = &[Damage::Cut, Damage::Gone];
const ANY: &[Damage] = &[Damage::Bit, Damage::Noise, Damage::Sector, Damage::Cut, Damage::Gone];

impl Damage {
    /// What it is counted as once a server has named it.
    pub fn sight(self) -> Seen {
        match self {
            Damage::Bit => Seen::FoundBit,
            Damage::Noise => Seen::FoundNoise,
            Damage::Sector => Seen::FoundSector,
            Damage::Cut => Seen::FoundCut,
            Damage::Gone => Seen::FoundGone,
            Damage::LostWrite => Seen::FoundLostWrite,
            Damage::LostOverwrite => Seen::FoundLostOverwrite,
            Damage::Misdirected => Seen::FoundMisdirected,
        }
    }
}

fn pick<T: Copy>(rng: &mut SplitMix64, all: &[T]) -> T {
    all[rng.below(all.len() as u64) as usize]
}

impl World {
    /// A file of these kinds is damaged. Its server's process dies before that, or goes on and may notice when it reads. After
    /// a power cut the mark may be older than the log, and S1 promises less.
    pub fn damage(&mut self, id: NodeId, kinds: &[&str]) {
        let goes_on = kinds.contains(&".seg") && self.rng.one_in(3) && self.servers[&id].is_up();
        if self.servers[&id].running.is_some() && !goes_on {
            self.stop(id, false, false);
        }
        let server = &self.servers[&id];
        let power_lost = server.power_lost && server.running.is_none();
        let disk = server.disk.inner.clone();
        if server.ailment.is_some() || power_lost && !kinds.contains(&".seg") {
            return;
        }
        let kinds = if goes_on || power_lost { &[".seg"] } else { kinds };
        let names = disk.list().expect("a memory disk lists its files");
        let files: Vec<String> =
            names.into_iter().filter(|name| kinds.iter().any(|kind| name.ends_with(kind))).collect();
        if files.is_empty() {
            return;
        }
        let name = files[self.rng.below(files.len() as u64) as usize].clone();
        let harms = match (goes_on, power_lost, name.ends_with(".seg")) {
            (true, ..) => RUNNING,
            (_, true, _) => AFTER_POWER,
            (.., true) => LOG,
            _ => ANY,
        };
        let harm = pick(&mut self.rng, harms);
        let Some(where_to) = inflict(&mut self.rng, &disk, &name, harm) else { return };
        let server = self.server(id);
        server.ailment = Some(Ailment::Damaged(harm));
        server.flipped = true;
        self.note(|| format!("{harm:?} in {name} of {id} at {where_to}"));
    }

    /// A server has written over votes and said so, and dies. The disk had never written that.
    pub fn lose_write(&mut self, id: NodeId) {
        if self.can_spare(id) {
            self.stop(id, false, false);
            self.harm_last(id, Damage::LostOverwrite);
        }
    }

    /// The power of a server goes, and with it what it wrote last, or the file of that.
    pub fn lose_segment(&mut self, id: NodeId) {
        if self.can_spare(id) && self.servers[&id].ailment.is_none() {
            self.stop(id, true, false);
            let harm = pick(&mut self.rng, AFTER_POWER);
            self.harm_last(id, harm);
        }
    }

    /// Damage to the last segment with something in it.
    fn harm_last(&mut self, id: NodeId, harm: Damage) {
        let server = &self.servers[&id];
        let disk = server.disk.inner.clone();
        let names = disk.list().expect("a memory disk lists its files").into_iter();
        let used = |name: &String| name.ends_with(".seg") && groups(&disk, name).is_some();
        let Some(name) = names.filter(used).max() else { return };
        if server.ailment.is_some() || inflict(&mut self.rng, &disk, &name, harm).is_none() {
            return;
        }
        let server = self.server(id);
        server.ailment = Some(Ailment::Damaged(harm));
        server.flipped = true;
        self.note(|| format!("{harm:?} in {name} of {id}, the last one"));
    }

    /// A decided value goes bad on the disk of a server that runs, just when another one lags so far that it will want that
    /// value. Only where others have it as well.
    pub fn spoil_wanted(&mut self) {
        let topology = self.options.topology;
        let decided = |id: &NodeId| Some(self.servers[id].running.as_ref()?.shard.replica().decided());
        let wanted =
            self.servers.values().filter(|server| server.is_up() && !server.is_gone()).find_map(|server| {
                let members: Vec<NodeId> = topology.servers_of(topology.shard_of_server(server.id)).collect();
                let slot = members.iter().filter_map(decided).min()?.next();
                let having =
                    members.iter().filter(|id| decided(id).is_some_and(|decided| decided >= slot)).count();
                let replica = server.running.as_ref()?.shard.replica();
                let on_disk_only = slot <= replica.decided() && replica.entry(slot).is_none();
                (on_disk_only && having > 1 && !server.power_lost).then_some((server.id, slot))
            });
        let Some((id, slot)) = wanted.filter(|(id, _)| self.can_spare(*id)) else { return };
        let disk = self.servers[&id].disk.inner.clone();
        let mut place = None;
        let seen = survey(&disk, |seen| {
            if seen.slot == slot && matches!(seen.kind, "accept" | "learn") && !seen.payload.is_empty() {
                place = Some((format!("wal-{:08}.seg", seen.segment), seen.offset as usize + 56));
            }
        });
        let Some((name, at)) = place.filter(|_| seen.is_ok()) else { return };
        let Some(mut content) = disk.contents(&name) else { return };
        content[at] ^= 1;
        disk.overwrite(&name, content);
        let server = self.server(id);
        server.ailment = Some(Ailment::Damaged(Damage::Bit));
        server.flipped = true;
        self.note(|| {
            format!("the value of slot {slot}, which another server lacks, goes bad in {name} of {id}")
        });
    }
}

/// Damages a file, if there is anything in it; returns where.
fn inflict(rng: &mut SplitMix64, disk: &MemDisk, name: &str, harm: Damage) -> Option<u64> {
    let mut content = disk.contents(name)?;
    let written = content.iter().rposition(|byte| *byte != 0)? as u64 + 1;
    // Half of the damage is to what was written last.
    let last = if rng.one_in(2) { written.min(600) } else { written };
    let at = written - 1 - rng.below(last);
    match harm {
        Damage::Bit => content[at as usize] ^= 1 << rng.below(8),
        Damage::Noise => {
            let end = (at + 1 + rng.below(64)).min(written);
            content[at as usize..end as usize].iter_mut().for_each(|byte| *byte ^= rng.below(255) as u8 + 1);
        }
        Damage::Sector => {
            disk.ruin(name, at);
            return Some(at);
        }
        Damage::Cut => content.truncate(at as usize),
        Damage::Gone => {
            disk.take_away(name);
            return Some(0);
        }
        Damage::LostWrite | Damage::LostOverwrite | Damage::Misdirected => {
            let groups = groups(disk, name)?;
            let last = match harm {
                Damage::LostOverwrite => 1,
                _ if rng.one_in(2) => groups.len().min(4),
                _ => groups.len(),
            };
            let (from, to) = groups[groups.len() - 1 - rng.below(last as u64) as usize];
            let group = content[from..to].to_vec();
            content[from..to].fill(0);
            if harm == Damage::Misdirected {
                let places = (content.len() - group.len()) as u64 / 8 + 1;
                let target = rng.below(places) as usize * 8;
                if target == from {
                    return None;
                }
                content[target..target + group.len()].copy_from_slice(&group);
            }
            disk.overwrite(name, content);
            return Some(from as u64);
        }
    }
    disk.overwrite(name, content);
    Some(at)
}

/// Where the groups of a segment stand, as far as they do in this segment; `None` if there are none.
fn groups(disk: &MemDisk, name: &str) -> Option<Vec<(usize, usize)>> {
    let mut groups: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
    let length = disk.contents(name)?.len();
    survey(disk, |seen| {
        if name == format!("wal-{:08}.seg", seen.segment) {
            let from = seen.offset as usize;
            let to = from + 56 + seen.payload.len().next_multiple_of(8);
            // What fills the last record up may have been cut off.
            let to = to.min(length);
            groups.entry(seen.group).or_insert((from, to)).1 = to;
        }
    })
    .ok()?;
    (!groups.is_empty()).then(|| groups.into_values().collect())
}
