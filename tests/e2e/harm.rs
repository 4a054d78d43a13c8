//! Damage to the files of a server that is down, where something is written, and whether the server met it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use shardpaxosbank::workload::SplitMix64;

/// The block in front of a segment's records and of a snapshot's pieces.
const BLOCK: usize = 4096;
/// What a restart reads of the log lies at its end.
const RECENT: usize = 16 * 1024;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Segment,
    Snapshot,
    Mark,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Way {
    Flipped,
    Cut,
    Removed,
}

const KINDS: [Kind; 3] = [Kind::Segment, Kind::Snapshot, Kind::Mark];
const WAYS: [Way; 3] = [Way::Flipped, Way::Cut, Way::Removed];

/// What was done to a file, and the names of which its server must say one.
#[derive(Debug)]
pub struct Harm {
    kind: Kind,
    way: Way,
    names: Vec<String>,
    #[expect(dead_code, reason = "printed when a test fails")]
    at: usize,
}

/// How often what was done, and how often a server met it.
#[derive(Default)]
pub struct Tally {
    done: BTreeMap<(Kind, Way), u64>,
    met: BTreeMap<(Kind, Way), u64>,
}

impl Tally {
    /// Harms one file, sometimes two.
    pub fn harm(&mut self, place: &Path, rng: &mut SplitMix64) -> Vec<Harm> {
        let mut harms: Vec<Harm> = Vec::new();
        let files = if rng.one_in(3) { 2 } else { 1 };
        // What is drawn may not be there, or not be whole any more; the mark always is.
        for _ in 0..100 {
            let (kind, way) = self.draw(rng);
            if harms.len() == files || harms.iter().any(|harm| harm.kind == kind) {
                continue;
            }
            if let Some(harm) = harm(place, kind, way, rng) {
                harms.push(harm);
                *self.done.entry((kind, way)).or_default() += 1;
            }
        }
        harms
    }

    /// Half of the time what was met least so far, so that everything has its turn.
    fn draw(&self, rng: &mut SplitMix64) -> (Kind, Way) {
        let mut all: Vec<(Kind, Way)> = KINDS.iter().flat_map(|kind| WAYS.map(|way| (*kind, way))).collect();
        if rng.one_in(2) {
            let met = |cell: &(Kind, Way)| self.met.get(cell).copied().unwrap_or(0);
            let least = all.iter().map(met).min().expect("nine");
            all.retain(|cell| met(cell) == least);
        }
        all[rng.below(all.len() as u64) as usize]
    }

    /// A server started, or refused to, and said so much. What it says anew about a harmed file is a hit.
    pub fn heard(&mut self, harms: &[Harm], before: &BTreeSet<String>, said: &[String]) {
        for harm in harms {
            let hit =
                |line: &&String| harm.names.iter().any(|name| line.contains(name)) && !before.contains(*line);
            if said.iter().find(hit).is_some() {
                *self.met.entry((harm.kind, harm.way)).or_default() += 1;
            }
        }
    }

    /// What no server ever met.
    pub fn never_met(&self) -> Vec<(Kind, Way)> {
        let all = KINDS.iter().flat_map(|kind| WAYS.map(|way| (*kind, way)));
        all.filter(|cell| !self.met.contains_key(cell)).collect()
    }

    /// For each kind of file and each way: met, of done.
    pub fn table(&self) -> String {
        let mut text = format!("{:<9}", "damage");
        WAYS.iter().for_each(|way| _ = write!(text, " {:>12}", format!("{way:?}")));
        for kind in KINDS {
            let _ = write!(text, "\n{:<9}", format!("{kind:?}"));
            for way in WAYS {
                let of = |counts: &BTreeMap<_, u64>| counts.get(&(kind, way)).copied().unwrap_or(0);
                let _ = write!(text, " {:>12}", format!("{} of {}", of(&self.met), of(&self.done)));
            }
        }
        text
    }
}

/// The files of a directory that end so, in order of their numbers.
fn files(place: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(place).expect("a directory").flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().ends_with(suffix)).collect();
    files.sort();
    files
}

/// How many bytes there are to the last one that is not zero.
fn written(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)
}

/// The segment in which the log ends, or sometimes one before it.
fn segment(place: &Path, rng: &mut SplitMix64) -> Option<PathBuf> {
    let mut begun: Vec<PathBuf> = files(place, ".seg");
    begun.retain(|path| written(&fs::read(path).expect("a segment")) > BLOCK);
    let last = begun.pop()?;
    Some(match begun.len() {
        n @ 1.. if rng.one_in(5) => begun.swap_remove(rng.below(n as u64) as usize),
        _ => last,
    })
}

fn harm(place: &Path, kind: Kind, way: Way, rng: &mut SplitMix64) -> Option<Harm> {
    let file = match kind {
        Kind::Segment => segment(place, rng)?,
        Kind::Snapshot => files(place, ".snap").pop()?,
        Kind::Mark => place.join("mark"),
    };
    let name = |file: &Path| file.file_name().expect("a file").to_string_lossy().into_owned();
    let mut names = vec![name(&file)];
    let mut bytes = fs::read(&file).expect("a file that can be read");
    let below = |rng: &mut SplitMix64, from: usize, to: usize| from + rng.below((to - from) as u64) as usize;
    let end = written(&bytes);
    if kind != Kind::Mark && end <= BLOCK {
        return None;
    }
    let at = match kind {
        // Mostly zeros, and all of them matter.
        Kind::Mark => below(rng, 0, bytes.len()),
        _ if rng.one_in(4) => below(rng, 0, written(&bytes[..bytes.len().min(BLOCK)])),
        _ if rng.one_in(3) => below(rng, BLOCK, end),
        _ => below(rng, end.saturating_sub(RECENT).max(BLOCK), end),
    };
    match way {
        Way::Flipped => {
            bytes[at] ^= 1 << rng.below(8);
            fs::write(&file, bytes).expect("a file that can be written");
        }
        Way::Cut => fs::write(&file, &bytes[..at]).expect("a file that can be written"),
        Way::Removed if kind == Kind::Snapshot => {
            // One that is gone is missed by nobody who has the whole log; so its beginning goes as well.
            for path in files(place, ".snap") {
                names.push(name(&path));
                fs::remove_file(path).expect("a snapshot");
            }
            names.push("wal-00000001.seg".into());
            fs::remove_file(files(place, ".seg").first()?).expect("a segment");
        }
        Way::Removed => fs::remove_file(&file).expect("a file"),
    }
    Some(Harm { kind, way, names, at })
}
